//! Reads a TOML text into its leaves, each with its line.

use std::path::Path;

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::failure::{self, Failure};

/// One `key = value` of the file, the key with its table's name.
#[derive(Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub value: Value,
    pub line: usize,
}

/// All entries, in the order of their lines.
///
/// # Errors
/// The first place that is no TOML.
pub fn read(path: &Path, text: &str) -> Result<Vec<Entry>, Failure> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        let (what, why) = (format!("{}:{line} is not TOML", path.display()), error.message().to_owned());
        failure::config(what, why, format!("correct line {line}; texts stand in quotes, tables in [brackets]"))
    })?;
    let mut entries = Vec::new();
    collect(text, "", table.get_ref(), &mut entries);
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn collect(text: &str, prefix: &str, table: &DeTable<'_>, entries: &mut Vec<Entry>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        if let DeValue::Table(table) = value.get_ref() {
            collect(text, &key, table, entries);
        } else {
            let line = line_of(text, name.span().start);
            entries.push(Entry { key, value: to_json(value.get_ref()), line });
        }
    }
}

fn to_json(value: &DeValue<'_>) -> Value {
    let number =
        |text: &str| serde_json::from_str(&text.replace('_', "")).unwrap_or_else(|_| Value::String(text.to_owned()));
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(integer) if integer.radix() == 10 => number(integer.as_str()),
        DeValue::Integer(integer) => {
            i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(float) => number(float.as_str()),
        DeValue::Boolean(boolean) => Value::Bool(*boolean),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => items.iter().map(Spanned::get_ref).map(to_json).collect(),
        DeValue::Table(table) => {
            table.iter().map(|(name, value)| (name.get_ref().to_string(), to_json(value.get_ref()))).collect()
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}
