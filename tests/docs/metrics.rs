//! docs/metrics.md is what the program registers, and what it registers has sound names.

use tollstream::cli::metrics::{markdown, registered};
use tollstream::telemetry::metrics::{Description, Kind};

#[test]
fn the_guide_to_the_metrics_is_what_the_program_registers() {
    let guide = std::fs::read_to_string("docs/metrics.md").expect("the guide");
    let made = markdown(&registered().descriptions());
    assert!(guide == made, "docs/metrics.md is stale; run: tollstream metrics > docs/metrics.md\n{made}");
}

/// What <https://prometheus.io/docs/practices/naming/> asks for.
#[test]
fn the_metrics_have_sound_names() {
    let metrics = registered().descriptions();
    assert!(metrics.len() > 50, "{} metrics", metrics.len());
    for Description { name, kind, labels, meaning, .. } in &metrics {
        let words = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(words && name.starts_with("tollstream_"), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name} has a unit");
        for unit in ["milliseconds", "_ms", "micros", "minutes", "kbytes", "percent", "_count", "_sum", "_bucket"] {
            assert!(!name.contains(unit), "{name}: {unit} is no base unit, or means something to Prometheus");
        }
        for label in labels {
            assert!(!name.contains(&format!("_by_{label}")), "{name} names its label");
            assert!(
                !["request", "organization", "key", "user", "le", "job", "instance"].contains(label),
                "{name}: {label}"
            );
        }
        assert!(!meaning.is_empty() && !meaning.ends_with('.'), "{name}: {meaning}");
    }
}
