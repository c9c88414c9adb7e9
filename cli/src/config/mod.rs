//! Configuration in layers: what a role's settings are by default, in its TOML file, in `QUORATE_…` variables and by flags.
//!
//! ```text
//!   default  <  file.toml  <  QUORATE_NODE_NUMBER=2  <  --node 2          the right one wins, and is remembered
//! ```
//! The keys are read off the settings' own type, so there is no second list to forget. A key that is not one is refused with the
//! nearest that is; a value that cannot be read is refused with the place it came from. Pure: files and variables are
//! handed in; only `read` opens a file.

mod file;
mod keys;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use self::keys::Keys;
use crate::failure::{self, Failure};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File { path: PathBuf, line: usize },
    /// A variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One value that somebody set.
#[derive(Clone, Debug)]
struct Setting {
    key: String,
    value: Value,
    origin: Origin,
}

/// What a role is told. The type's own text says which keys there are; this, what their values may be.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// What a value of `key` may be, as it is written: `1 to 1000`. `None` for keys without a range.
    fn range(key: &str) -> Option<String>;
}

/// Gathers the layers; later ones win.
#[derive(Debug)]
pub struct Layers {
    keys: Keys,
    settings: Vec<Setting>,
}

/// A role's settings, and where each came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings.
    pub settings: T,
    values: BTreeMap<String, (Value, Origin)>,
}

impl Layers {
    /// The first layer: the defaults of `T`, which also name every key there is.
    pub fn of<T: Settings>() -> Self {
        let defaults = serde_json::to_value(T::default()).expect("settings are plain data");
        Self { keys: Keys::of(&defaults), settings: Vec::new() }
    }

    /// The text of the file at `path`.
    ///
    /// # Errors
    /// Text that is no TOML, and keys that are not known, each with its line.
    pub fn file(&mut self, path: PathBuf, text: &str) -> Result<(), Failure> {
        for entry in file::read(&path, text)? {
            let origin = Origin::File { path: path.clone(), line: entry.line };
            self.keys.check(&entry.key).map_err(|why| wrong_key(&origin, &entry.key, why))?;
            self.settings.push(Setting { key: entry.key, value: entry.value, origin });
        }
        Ok(())
    }

    /// The process's variables. Only those that begin with `QUORATE_` are looked at.
    ///
    /// # Errors
    /// A variable of that name that is no key. Those that Kubernetes makes of a service named `quorate` are let pass.
    pub fn variables(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<(), Failure> {
        let mut variables: Vec<_> = variables.into_iter().collect();
        variables.sort();
        for (name, text) in variables {
            let Some(found) = self.keys.of_variable(&name) else { continue };
            let origin = Origin::Variable(name.clone());
            let key = found.map_err(|why| wrong_key(&origin, &name, why))?;
            let value = self.keys.read(&key, &text);
            self.settings.push(Setting { key, value, origin });
        }
        Ok(())
    }

    /// A flag, if it was given.
    pub fn flag(&mut self, name: &'static str, key: &str, value: Option<impl Into<String>>) {
        if let Some(text) = value {
            let value = self.keys.read(key, &text.into());
            self.settings.push(Setting { key: key.to_owned(), value, origin: Origin::Flag(name) });
        }
    }

    /// A flag that switches something on.
    pub fn switch(&mut self, name: &'static str, key: &str, on: bool) {
        self.flag(name, key, on.then_some("true"));
    }

    /// Puts the layers together.
    ///
    /// # Errors
    /// A value that its key cannot take, with its place.
    pub fn load<T: Settings>(self) -> Result<Loaded<T>, Failure> {
        let defaults = serde_json::to_value(T::default()).expect("settings are plain data");
        let mut whole = defaults.clone();
        let mut values: BTreeMap<String, (Value, Origin)> =
            self.keys.leaves().map(|(key, value)| (key.to_owned(), (value.clone(), Origin::Default))).collect();
        for Setting { key, value, origin } in self.settings {
            let mut alone = defaults.clone();
            keys::put(&mut alone, &key, value.clone());
            if let Err(error) = serde_json::from_value::<T>(alone) {
                let (what, next) = (format!("{key} cannot be {value}"), format!("change it in {origin}"));
                let is_number = default_of(&defaults, &key).is_some_and(Value::is_number);
                let why = match T::range(&key) {
                    // serde would name a type of Rust.
                    Some(range) if is_number => format!("write a whole number, {range} ({origin})"),
                    Some(range) => format!("{error}; {range} are possible ({origin})"),
                    None => format!("{error} ({origin})"),
                };
                return Err(failure::config(what, why, next));
            }
            keys::put(&mut whole, &key, value.clone());
            values.insert(key, (value, origin));
        }
        let settings = serde_json::from_value(whole).map_err(|error| {
            failure::config("the configuration cannot be read", error.to_string(), "quorate broker --print-config")
        })?;
        Ok(Loaded { settings, values })
    }
}

impl<T> Loaded<T> {
    /// Where a key's value came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.values.get(key).map_or(&Origin::Default, |(_, origin)| origin)
    }

    /// All settings as a TOML file would have them, each with its origin.
    pub fn print(&self) -> String {
        let width =
            self.values.iter().map(|(key, (value, _))| key.len() + value.to_string().len() + 3).max().unwrap_or(0);
        let line = |(key, (value, origin)): (&String, &(Value, Origin))| {
            let setting = if value.is_null() { format!("# {key} is not set") } else { format!("{key} = {value}") };
            format!("{setting:width$}  # {origin}\n")
        };
        self.values.iter().map(line).collect()
    }

    /// What somebody set, one line each.
    pub fn print_changed(&self) -> impl Iterator<Item = String> + '_ {
        let changed = self.values.iter().filter(|(_, (_, origin))| *origin != Origin::Default);
        changed.map(|(key, (value, origin))| format!("{key} = {value} ({origin})"))
    }
}

/// The default of a key.
fn default_of<'a>(defaults: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(defaults, |place, part| place.get(part))
}

/// The text of a config file.
///
/// # Errors
/// Names the file.
pub fn read(path: &std::path::Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("the config file {} cannot be read", path.display());
        failure::config(what, error.to_string(), "name an existing file with --config, or leave it out")
    })
}

fn wrong_key(origin: &Origin, name: &str, why: String) -> Failure {
    failure::config(format!("{name} is not a setting ({origin})"), why, "quorate broker --print-config")
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
