//! Where and how results appear: data on standard output as a table or as JSON, progress and notes on standard error.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Table, presets::NOTHING};
use serde_json::Value;

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON value for programs.
    Json,
}

/// A result in both forms: rows for people, a value for programs.
pub struct Answer {
    pub header: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
    pub json: Value,
}

impl Answer {
    /// A list of named figures.
    pub fn of_figures(figures: Vec<(&'static str, Value)>) -> Self {
        let row = |(name, value): &(&'static str, Value)| vec![(*name).to_owned(), text(value)];
        Self {
            header: vec!["FIGURE", "VALUE"],
            rows: figures.iter().map(row).collect(),
            json: figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// Standard output is gone (a closed pipe).
    pub fn print(&self, format: Format) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", self.render(format))
    }

    /// As [`Self::print`] would.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Json => self.json.to_string(),
            Format::Table => {
                let mut table = Table::new();
                table.load_style(NOTHING).set_header(self.header.clone()).add_rows(self.rows.clone());
                table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// A note for people, on standard error.
pub fn note(line: impl AsRef<str>) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
}

/// Whether standard output may be painted over: a terminal, and `NO_COLOR` is not set.
pub fn is_screen() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_rows_for_people_and_one_object_for_programs() {
        let answer = Answer::of_figures(vec![("p50_ms", json!(1.5)), ("flush", json!("sync")), ("cpu", Value::Null)]);
        assert_eq!(answer.render(Format::Json), r#"{"cpu":null,"flush":"sync","p50_ms":1.5}"#);
        let table = answer.render(Format::Table);
        assert!(table.lines().any(|line| line.split_whitespace().eq(["flush", "sync"])), "{table}");
    }
}
