//! Finds fields that do not exist and says which one was probably meant.
//!
//! The known fields come from the default configuration, which has every field but one, so no
//! second list needs updating.

use serde_json::Value;

use super::{Config, ConfigError, Kubernetes};

/// One sentence for each unknown field in `text`, in the order of the text.
pub(super) fn unknown_fields(text: &str) -> Result<Vec<String>, ConfigError> {
    let given: Value = serde_yaml_ng::from_str(text)?;
    // Serializing the defaults cannot fail; if it did, serde's own check of the names would still
    // apply.
    let mut known = serde_json::to_value(Config::default()).unwrap_or(Value::Null);
    // The one field whose alternatives exclude each other.
    if let Ok(kubernetes) = serde_json::to_value(Kubernetes::default()) {
        known["source"]["kubernetes"] = kubernetes;
    }
    let mut problems = Vec::new();
    compare("", &given, &known, &mut problems);
    Ok(problems)
}

fn compare(path: &str, given: &Value, known: &Value, problems: &mut Vec<String>) {
    let (Value::Object(given), Value::Object(known)) = (given, known) else { return };
    for (name, value) in given {
        match known.get(name) {
            Some(inner) => compare(&format!("{path}{name}."), value, inner, problems),
            None => problems.push(unknown(path, name, known.keys().map(String::as_str))),
        }
    }
}

fn unknown<'a>(path: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = known
        .clone()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().min(name.len()).div_ceil(2))
        .min();
    match nearest {
        Some((_, candidate)) => format!("unknown field `{path}{name}`; did you mean `{path}{candidate}`?"),
        None => {
            let all: Vec<&str> = known.collect();
            format!("unknown field `{path}{name}`; the fields here are {}", all.join(", "))
        }
    }
}
