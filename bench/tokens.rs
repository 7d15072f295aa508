//! What it costs to load the tokenizer's table and to count: `cargo bench --bench tokens`.

use std::io::Write as _;
use std::time::{Duration, Instant};

use tollstream::processor::{content, tokens};

const KIB: usize = 1 << 10;
const ENGLISH: &str = "The quick brown fox jumps over the lazy dog. Our customers asked how long delivery takes, and \
                       whether the invoice could be sent again. ";
const PORTUGUESE: &str = "Os nossos clientes perguntaram quanto tempo demora a entrega, e se a fatura podia ser enviada \
                          outra vez. Não há devolução após trinta dias. ";
const CODE: &str = "fn decide(&self, at: Timestamp) -> Result<Decision, Error> {\n    let mut facts = Vec::new();\n    \
                    for (i, member) in members.iter().enumerate() {\n        facts.push(member.key == \"model\");\n    \
                    }\n    Ok(Decision { facts, ..Decision::default() })\n}\n";

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let (before, began) = (resident_kib(), Instant::now());
    tokens::load();
    let loaded = began.elapsed();
    writeln!(out, "loaded in {loaded:?}, {} KiB resident", resident_kib().saturating_sub(before))?;
    for (name, text) in texts() {
        let (took, tokens) = fastest(|| tokens::count(&text));
        let per_kib = took.as_nanos() * KIB as u128 / text.len() as u128;
        writeln!(out, "{name:26} {:>8} bytes {tokens:>7} tokens {per_kib:>8} ns/KiB", text.len())?;
    }
    for bytes in [KIB, 4 * KIB, 16 * KIB] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, repeated(ENGLISH, bytes));
        let (took, _) = fastest(|| content::read(body.as_bytes()));
        writeln!(out, "a body of {} bytes read in {took:?}", body.len())?;
    }
    Ok(())
}

fn texts() -> Vec<(&'static str, String)> {
    let letters = |count: u64| random().map(move |number| char::from(b'!' + (number % count) as u8));
    vec![
        ("english, 4 KiB", repeated(ENGLISH, 4 * KIB)),
        ("english, 1 MiB", repeated(ENGLISH, KIB * KIB)),
        ("portuguese, 1 MiB", repeated(PORTUGUESE, KIB * KIB)),
        ("code, 1 MiB", repeated(CODE, KIB * KIB)),
        ("one letter, 1 MiB", repeated("a", KIB * KIB)),
        ("one letter, 4 MiB", repeated("a", 4 * KIB * KIB)),
        ("emoji, 1 MiB", repeated("😀", KIB * KIB)),
        ("spaces, 1 MiB", repeated(" ", KIB * KIB)),
        ("random characters, 1 MiB", letters(94).take(KIB * KIB).collect()),
        ("dashes, 64 KiB", repeated("-", 64 * KIB)),
        ("dashes, 1 MiB", repeated("-", KIB * KIB)),
        ("dashes, 4 MiB", repeated("-", 4 * KIB * KIB)),
        ("runs of - and =, 1 MiB", runs(KIB * KIB)),
    ]
}

fn repeated(text: &str, bytes: usize) -> String {
    text.repeat(bytes.div_ceil(text.len()))
}

/// Runs of signs, of many lengths: no part is like another.
fn runs(bytes: usize) -> String {
    let run = |number: u64| if number & 1 == 0 { "-" } else { "=" }.repeat(50 + (number >> 8) as usize % 200);
    let (mut text, mut numbers) = (String::with_capacity(bytes), random());
    while text.len() < bytes {
        text.extend(numbers.next().map(run));
    }
    text
}

/// The same numbers in every run (xorshift).
fn random() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(88_172_645_463_325_252_u64), |x| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        Some(x ^ (x << 17))
    })
}

/// The shortest of several runs, which the machine's noise has lengthened the least.
fn fastest<T>(work: impl Fn() -> T) -> (Duration, T) {
    let timed = || {
        let began = Instant::now();
        let result = work();
        (began.elapsed(), result)
    };
    (0..4).map(|_| timed()).fold(timed(), |best, run| if run.0 < best.0 { run } else { best })
}

/// Of this process, by Linux.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
