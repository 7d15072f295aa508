//! What the guides name exists.

mod metrics;
mod monitoring;

use tollstream::config::Config;

const SECTIONS: [&str; 10] =
    ["facade", "processor", "cache", "sink", "projection", "providers", "kafka", "clickhouse", "admin", "telemetry"];

fn is_constant(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// Constants are named before their file, in the same cell of a table.
#[test]
fn the_constants_of_the_bounds_stand_in_the_files_that_the_guide_names() {
    let guide = std::fs::read_to_string("docs/bounds.md").expect("the guide");
    let (mut constants, mut found) = (Vec::new(), 0);
    for (number, part) in guide.split('`').enumerate() {
        match part.strip_suffix(".rs") {
            _ if number % 2 == 0 && part.contains('|') => constants.clear(),
            _ if number % 2 == 0 => {}
            Some(_) => {
                let source = std::fs::read_to_string(format!("src/{part}")).unwrap_or_else(|e| panic!("{part}: {e}"));
                for constant in constants.drain(..) {
                    assert!(source.contains(&format!("const {constant}:")), "{constant} is not in src/{part}");
                    found += 1;
                }
            }
            None if is_constant(part) => constants.push(part),
            None => {}
        }
    }
    assert!(found > 10, "{found} constants");
}

#[test]
fn the_settings_of_the_bounds_exist() {
    let guide = std::fs::read_to_string("docs/bounds.md").expect("the guide");
    let (known, mut found) = (serde_json::to_value(Config::default()).expect("the settings"), 0);
    for name in guide.split('`').skip(1).step_by(2) {
        if !name.split_once('.').is_some_and(|(section, _)| SECTIONS.contains(&section)) {
            continue;
        }
        assert!(known.pointer(&format!("/{}", name.replace('.', "/"))).is_some(), "there is no setting {name}");
        found += 1;
    }
    assert!(found > 20, "{found} settings");
}
