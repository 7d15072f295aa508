//! What of a request determines its answer, in one form: members in the order of their names, numbers and strings as one
//! would write them. Two requests that are equal in it want the same answer of the same model.

use std::io::{self, Write};

use serde_json::Value;

/// Members that say who asks, how the answer is delivered, or what becomes of it; the model is told apart by who answers.
const NOT_OF_THE_ANSWER: [&str; 13] = [
    "cache",
    "metadata",
    "model",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "user",
    // As long as they are not set, the answer is as if they were not there.
    "n",
    "logprobs",
];

/// Writes the canonical form of a body.
///
/// # Errors
/// The body is no JSON object, or the writer's own.
pub fn write(body: &[u8], out: &mut impl Write) -> io::Result<()> {
    let members: serde_json::Map<String, Value> = serde_json::from_slice(body)?;
    let counts = |(name, value): &(&String, &Value)| match name.as_str() {
        "n" => value.as_u64() != Some(1) && !value.is_null(),
        "logprobs" => value.as_bool() != Some(false) && !value.is_null(),
        name => !NOT_OF_THE_ANSWER.contains(&name) && !value.is_null(),
    };
    let mut members: Vec<(&String, &Value)> = members.iter().filter(counts).collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    object(&members, out)
}

fn object(members: &[(&String, &Value)], out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"{")?;
    for (number, (name, value)) in members.iter().enumerate() {
        if number > 0 {
            out.write_all(b",")?;
        }
        serde_json::to_writer(&mut *out, name)?;
        out.write_all(b":")?;
        any(value, out)?;
    }
    out.write_all(b"}")
}

fn any(value: &Value, out: &mut impl Write) -> io::Result<()> {
    match value {
        Value::Object(members) => {
            let mut members: Vec<(&String, &Value)> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            object(&members, out)
        }
        Value::Array(values) => {
            out.write_all(b"[")?;
            for (number, value) in values.iter().enumerate() {
                if number > 0 {
                    out.write_all(b",")?;
                }
                any(value, out)?;
            }
            out.write_all(b"]")
        }
        // 1 and 1.0 are the same number.
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => write!(out, "{}", float as i64),
            _ => serde_json::to_writer(out, number).map_err(io::Error::from),
        },
        scalar => serde_json::to_writer(out, scalar).map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(body: &str) -> String {
        let mut out = Vec::new();
        write(body.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_determines_the_answer_is_left_and_nothing_else() {
        let one = r#"{"model":"a","messages":[{"role":"user","content":"olá"}],"temperature":0,"seed":7}"#;
        let same = [
            r#"{"seed":7,"temperature":0.0,"messages":[{"content":"ol\u00e1","role":"user"}],"model":"b"}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":0,"seed":7,"stream":true,"user":"u","metadata":{"a":"b"},
                "cache":{"no-cache":true},"n":1,"logprobs":false,"stop":null,"service_tier":"auto","store":true}"#,
        ];
        for other in same {
            assert_eq!(canonical(one), canonical(other));
        }
        let other = [
            r#"{"messages":[{"role":"user","content":"ola"}],"temperature":0,"seed":7}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":1,"seed":7}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":0}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":0,"seed":7,"n":2}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":0,"seed":7,"max_tokens":9}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":0,"seed":7,"tools":[]}"#,
            r#"{"messages":[{"role":"user","content":["olá"]}],"temperature":0,"seed":7}"#,
            r#"{"messages":[{"role":"user","content":"olá"}],"temperature":0,"seed":7,"unheard_of":1}"#,
        ];
        for other in other {
            assert_ne!(canonical(one), canonical(other), "{other}");
        }
    }

    #[test]
    fn what_is_no_object_has_no_form() {
        for body in ["", "[]", "1", "{"] {
            assert!(write(body.as_bytes(), &mut Vec::new()).is_err(), "{body:?}");
        }
    }
}
