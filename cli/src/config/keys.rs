//! The keys that exist, read off a tree of defaults; and the nearest of them to one that does not.

use std::collections::BTreeMap;

use serde_json::Value;

/// Variables of the same prefix that are not settings of a role.
const OTHER_VARIABLES: [&str; 3] = ["QUORATE_ENDPOINTS", "QUORATE_CONFIG", "QUORATE_HTTP"];

/// Every leaf of the defaults, `section.key`, with its default.
#[derive(Clone, Debug)]
pub struct Keys {
    leaves: BTreeMap<String, Value>,
}

impl Keys {
    pub fn of(defaults: &Value) -> Self {
        let mut leaves = BTreeMap::new();
        collect(defaults, "", &mut leaves);
        Self { leaves }
    }

    pub fn leaves(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.leaves.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Fails with a reason if there is no such key.
    pub fn check(&self, key: &str) -> Result<(), String> {
        if self.leaves.contains_key(key) { Ok(()) } else { Err(self.did_you_mean(key, self.leaves.keys())) }
    }

    /// The key a variable sets; `None` if it is nobody's business here, an error if it looks like a setting and is none.
    pub fn of_variable(&self, name: &str) -> Option<Result<String, String>> {
        if !name.starts_with("QUORATE_") || OTHER_VARIABLES.contains(&name) {
            return None;
        }
        if let Some(key) = self.leaves.keys().find(|key| variable(key) == name) {
            return Some(Ok(key.clone()));
        }
        let is_of_kubernetes = name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.ends_with("_PORT")
            || name.contains("_PORT_")
                && name
                    .rsplit('_')
                    .next()
                    .is_some_and(|last| matches!(last, "TCP" | "UDP" | "PORT" | "PROTO" | "ADDR"));
        if is_of_kubernetes {
            return None;
        }
        let variables: Vec<String> = self.leaves.keys().map(|key| variable(key)).collect();
        Some(Err(self.did_you_mean(name, variables.iter())))
    }

    /// Reads a text as the kind of value that the key's default is. What does not fit stays text, and is refused later with a better reason.
    pub fn read(&self, key: &str, text: &str) -> Value {
        let text_value = || Value::String(text.to_owned());
        match self.leaves.get(key) {
            Some(Value::Bool(_)) => text.parse().map_or_else(|_| text_value(), Value::Bool),
            Some(Value::Number(_)) => {
                serde_json::from_str(text).ok().filter(Value::is_number).unwrap_or_else(text_value)
            }
            Some(Value::Array(_)) => {
                let parts = text.split([';', ',']).map(str::trim).filter(|part| !part.is_empty());
                parts.map(|part| Value::String(part.to_owned())).collect()
            }
            Some(Value::String(_) | Value::Null | Value::Object(_)) | None => text_value(),
        }
    }

    fn did_you_mean<'a>(&self, wrong: &str, all: impl Iterator<Item = &'a String>) -> String {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let distance = |key: &String| {
            let whole = strsim::damerau_levenshtein(wrong, key);
            // The right key in the wrong section is near too.
            let section = if key.contains('.') && last(key) == last(wrong) { 1 } else { usize::MAX };
            whole.min(section)
        };
        match all.map(|key| (distance(key), key)).min() {
            Some((distance, key)) if distance <= 2 + wrong.len() / 4 => format!("did you mean {key}?"),
            _ => "no key is like it".to_owned(),
        }
    }
}

fn variable(key: &str) -> String {
    format!("QUORATE_{}", key.replace('.', "_").to_uppercase())
}

fn collect(value: &Value, path: &str, leaves: &mut BTreeMap<String, Value>) {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
        leaves.insert(path.to_owned(), value.clone());
        return;
    };
    for (name, value) in map {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect(value, &path, leaves);
    }
}

/// Sets a leaf of a tree.
pub fn put(tree: &mut Value, key: &str, value: Value) {
    let mut place = tree;
    for part in key.split('.') {
        if !place.is_object() {
            *place = Value::Object(serde_json::Map::new());
        }
        let Value::Object(map) = place else { return };
        place = map.entry(part).or_insert(Value::Null);
    }
    *place = value;
}
