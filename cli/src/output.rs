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

/// A time as people read it, to the second, in UTC: `2026-11-24 22:13:20`. `-` for none.
pub fn utc(ms: i64) -> String {
    if ms <= 0 {
        return "-".to_owned();
    }
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Year, month and day of so many days since the first of January 1970. Counted from the first of March of year 0, so that a leap day ends
/// its year: then every month but the last has a fixed length.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
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
    fn a_time_is_a_date_and_a_time_of_day() {
        for (seconds, said) in [
            (1, "1970-01-01 00:00:01"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_700_000_000, "2023-11-14 22:13:20"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(seconds * 1000), said);
        }
        assert_eq!(utc(0), "-");
    }

    #[test]
    fn figures_are_rows_for_people_and_one_object_for_programs() {
        let answer = Answer::of_figures(vec![("p50_ms", json!(1.5)), ("flush", json!("sync")), ("cpu", Value::Null)]);
        assert_eq!(answer.render(Format::Json), r#"{"cpu":null,"flush":"sync","p50_ms":1.5}"#);
        let table = answer.render(Format::Table);
        assert!(table.lines().any(|line| line.split_whitespace().eq(["flush", "sync"])), "{table}");
    }
}
