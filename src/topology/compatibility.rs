//! Whether two schemas can read each other's records, offline; the registry decides the same with FULL_TRANSITIVE.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{ArraySchema, MapSchema, Name, RecordSchema, ResolvedSchema, UnionSchema};
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

/// Why the schemas do not read each other whole, or nothing.
///
/// Stricter than Avro where Avro would fail only on some records: a union that has a branch more than the other cannot
/// read them all.
pub fn full(older: &Schema, newer: &Schema) -> Result<(), String> {
    let (older, newer) = (&spelled_out(older)?, &spelled_out(newer)?);
    for (writer, reader, direction) in [
        (older, newer, "the current schema cannot read records of this one"),
        (newer, older, "this one cannot read records of the current schema"),
    ] {
        match SchemaCompatibility::can_read(writer, reader) {
            Ok(Compatibility::Full) => {}
            Ok(Compatibility::Partial) => {
                return Err(format!("{direction}: a union or an enum has values that the reader lacks"));
            }
            Err(e) => return Err(format!("{direction}: {e}")),
        }
    }
    Ok(())
}

/// The schema with every reference replaced by the type that it names: which mention of a type defines it may change from
/// one version to the next, and the comparison does not follow names.
fn spelled_out(schema: &Schema) -> Result<Schema, String> {
    let resolved = ResolvedSchema::new(schema).map_err(|e| e.to_string())?;
    let names = resolved.get_names().iter().map(|(name, schema)| (name.clone(), *schema)).collect();
    spell(schema, &names, &mut Vec::new())
}

fn spell(schema: &Schema, names: &HashMap<Name, &Schema>, open: &mut Vec<Name>) -> Result<Schema, String> {
    Ok(match schema {
        // A type within itself stays a name.
        Schema::Ref { name } if open.contains(name) => schema.clone(),
        Schema::Ref { name } => {
            let named = names.get(name).ok_or_else(|| format!("{} is not defined", name.name()))?;
            spell(named, names, open)?
        }
        Schema::Record(record) => {
            open.push(record.name.clone());
            let mut fields = record.fields.clone();
            for field in &mut fields {
                field.schema = spell(&field.schema, names, open)?;
            }
            open.pop();
            Schema::Record(RecordSchema { fields, ..record.clone() })
        }
        Schema::Array(array) => {
            Schema::Array(ArraySchema { items: Box::new(spell(&array.items, names, open)?), ..array.clone() })
        }
        Schema::Map(map) => Schema::Map(MapSchema { types: Box::new(spell(&map.types, names, open)?), ..map.clone() }),
        Schema::Union(union) => {
            let variants =
                union.variants().iter().map(|variant| spell(variant, names, open)).collect::<Result<_, _>>()?;
            Schema::Union(UnionSchema::new(variants).map_err(|e| e.to_string())?)
        }
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &str) -> Schema {
        Schema::parse_str(&format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)).unwrap()
    }

    const KIND: &str = r#"{"name":"kind","type":"string"}"#;

    #[test]
    fn what_may_change_and_what_may_not() {
        let enumeration = |symbols: &str, default: &str| {
            format!(r#"{{"name":"e","type":{{"type":"enum","name":"E","symbols":[{symbols}]{default}}}}}"#)
        };
        let default = r#","default":"A""#;
        let union = |branches: &str| format!(r#"{{"name":"u","type":[{branches}],"default":null}}"#);
        let one = r#""null",{"type":"record","name":"One","fields":[]}"#;
        let two = r#""null",{"type":"record","name":"One","fields":[]},{"type":"record","name":"Two","fields":[]}"#;
        let table = [
            ("a nullable field", KIND.to_owned(), format!("{KIND},{}", union(r#""null","long""#)), true),
            ("a kind", KIND.to_owned(), format!("{KIND},{}", union(one)), true),
            ("a field without default", KIND.to_owned(), format!(r#"{KIND},{{"name":"n","type":"long"}}"#), false),
            ("a symbol", enumeration(r#""A","B""#, default), enumeration(r#""A","B","C""#, default), true),
            ("a symbol without default", enumeration(r#""A""#, ""), enumeration(r#""A","B""#, ""), false),
            ("a branch of a union", union(one), union(two), false),
            ("a wider number", r#"{"name":"n","type":"int"}"#.into(), r#"{"name":"n","type":"long"}"#.into(), false),
        ];
        for (what, older, newer, allowed) in table {
            let result = full(&schema(&older), &schema(&newer));
            assert_eq!(result.is_ok(), allowed, "{what}: {result:?}");
        }
    }

    #[test]
    fn which_mention_defines_a_type_does_not_matter() {
        let one = r#"{"type":"record","name":"One","fields":[{"name":"n","type":"long"}]}"#;
        let nullable = |name: &str, kind: &str| format!(r#"{{"name":"{name}","type":["null",{kind}],"default":null}}"#);
        let later = schema(&nullable("b", one));
        let earlier = schema(&format!("{},{}", nullable("a", one), nullable("b", r#""One""#)));
        full(&later, &earlier).unwrap();
        let other = one.replace("long", "string");
        let changed = schema(&format!("{},{}", nullable("a", &other), nullable("b", r#""One""#)));
        assert!(full(&later, &changed).is_err());
    }

    #[test]
    fn a_type_may_hold_itself() {
        let tree = schema(r#"{"name":"next","type":["null","R"],"default":null}"#);
        full(&tree, &tree).unwrap();
    }
}
