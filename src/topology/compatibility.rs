//! Whether two schemas can read each other's records, offline; the registry decides the same with FULL_TRANSITIVE.

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

/// Why the schemas do not read each other whole, or nothing.
///
/// Stricter than Avro where Avro would fail only on some records: a union that has a branch more than the other cannot
/// read them all.
pub fn full(older: &Schema, newer: &Schema) -> Result<(), String> {
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
}
