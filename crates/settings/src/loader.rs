//! Lays the sources over each other and reads the result into the service's own type. A key that the type does not
//! have is an error whether or not the type itself minds, since a mistyped setting that is silently ignored is the
//! worst kind of setting.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::error::SettingsError;
use crate::secret;
use crate::tree::{Node, Source, from_toml, join};

/// Reads settings: the defaults of the type, then the file, the environment, the assignments and the overrides, each
/// over the ones before.
#[derive(Debug)]
#[must_use]
pub struct Loader {
    env_prefix: &'static str,
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    assignments: Vec<String>,
    overrides: Vec<(String, Result<Json, String>)>,
}

impl Loader {
    /// `env_prefix` is what the names of environment variables begin with, as in `STREAMGAUGE_PRODUCER`; a double
    /// underscore leads into a group: `STREAMGAUGE_PRODUCER_KAFKA__BROKERS` is `kafka.brokers`.
    pub fn new(env_prefix: &'static str) -> Self {
        Loader {
            env_prefix,
            file: None,
            environment: Vec::new(),
            assignments: Vec::new(),
            overrides: Vec::new(),
        }
    }

    /// A TOML or YAML file. None is no file; a file that is not there is an error.
    pub fn file(mut self, path: Option<PathBuf>) -> Self {
        self.file = path;
        self
    }

    /// The environment. It is handed in, so that a test need not touch that of the process.
    pub fn environment(mut self, vars: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(vars);
        self
    }

    /// Assignments of the form `kafka.brokers=host:9092`.
    pub fn set(mut self, assignments: &[String]) -> Self {
        self.assignments.extend_from_slice(assignments);
        self
    }

    /// The value of a dedicated flag, for the dotted `key`.
    pub fn override_with(mut self, key: &str, value: impl Serialize) -> Self {
        let value =
            secret::exposing(|| serde_json::to_value(value)).map_err(|error| error.to_string());
        self.overrides.push((key.to_owned(), value));
        self
    }

    pub fn load<T: Serialize + DeserializeOwned + Default>(self) -> Result<T, SettingsError> {
        let defaults: Source = Arc::from("the default");
        let json = secret::exposing(|| serde_json::to_value(T::default())).map_err(|error| {
            SettingsError::Unrepresentable {
                key: String::new(),
                detail: error.to_string(),
            }
        })?;
        let known = json.clone();
        let mut tree = Node::from_json(json, &defaults);
        if let Some(path) = &self.file {
            let source: Source = Arc::from(format!("from {}", path.display()));
            tree.merge(Node::from_json(read_file(path)?, &source), "")?;
        }
        self.add_environment(&mut tree)?;
        for assignment in &self.assignments {
            add_assignment(&mut tree, assignment)?;
        }
        for (key, value) in self.overrides {
            let value = value.map_err(|detail| SettingsError::Unrepresentable {
                key: key.clone(),
                detail,
            })?;
            let source: Source = Arc::from("from a flag");
            tree.insert(&key, Node::from_json(value, &source))?;
        }
        read(tree, &known)
    }

    /// Sorted, so that which of two conflicting variables wins does not depend on the process.
    fn add_environment(&self, tree: &mut Node) -> Result<(), SettingsError> {
        let mut vars: Vec<_> = self
            .environment
            .iter()
            .filter_map(|(name, value)| {
                let key = name.strip_prefix(self.env_prefix)?.strip_prefix('_')?;
                let is_setting = !key.is_empty() && !is_service_link(key, value);
                is_setting.then(|| (key.replace("__", ".").to_ascii_lowercase(), name, value))
            })
            .collect();
        vars.sort();
        for (key, name, value) in vars {
            let source: Source = Arc::from(format!("from the environment variable {name}"));
            tree.insert(&key, Node::text(value, &source))?;
        }
        Ok(())
    }
}

/// Kubernetes describes each service of the namespace in variables that begin with the service's name, which may well
/// be our prefix: `STREAMGAUGE_PRODUCER_SERVICE_HOST`, `…_PORT=tcp://10.0.0.1:80`, `…_PORT_80_TCP_ADDR`.
fn is_service_link(key: &str, value: &str) -> bool {
    let describes_port = |(_, rest): (&str, &str)| {
        let protocol = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        protocol.len() < rest.len()
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|name| protocol.starts_with(name))
    };
    key.ends_with("SERVICE_HOST")
        || key.ends_with("SERVICE_PORT")
        || key.contains("SERVICE_PORT_")
        || (key.ends_with("PORT") && value.contains("://"))
        || key.split_once("PORT_").is_some_and(describes_port)
}

fn add_assignment(tree: &mut Node, assignment: &str) -> Result<(), SettingsError> {
    let malformed = || SettingsError::Assignment {
        assignment: assignment.to_owned(),
    };
    let (key, value) = assignment.split_once('=').ok_or_else(malformed)?;
    let (key, value) = (key.trim(), value.trim());
    if key.split('.').any(str::is_empty) {
        return Err(malformed());
    }
    let source: Source = Arc::from(format!("from --set {key}"));
    tree.insert(key, Node::text(unquote(value), &source))
}

/// `--set name='"a"'` means `a`: quotes are how a TOML string is written.
fn unquote(value: &str) -> String {
    let quoted = value.len() >= 2 && (value.starts_with('"') || value.starts_with('\''));
    if quoted
        && let Ok(mut table) = toml::from_str::<toml::Table>(&format!("value = {value}"))
        && let Some(toml::Value::String(text)) = table.remove("value")
    {
        return text;
    }
    value.to_owned()
}

fn read_file(path: &Path) -> Result<Json, SettingsError> {
    let ending = path
        .extension()
        .and_then(|ending| ending.to_str())
        .map(str::to_ascii_lowercase);
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let malformed = |format: &'static str, detail: String| SettingsError::Malformed {
        path: path.to_owned(),
        format,
        detail,
    };
    let json = match ending.as_deref() {
        Some("toml") => toml::from_str(&text)
            .map(|table| from_toml(toml::Value::Table(table)))
            .map_err(|error| malformed("TOML", error.to_string()))?,
        Some("yaml" | "yml") if text.trim().is_empty() => Json::Null,
        Some("yaml" | "yml") => {
            serde_saphyr::from_str(&text).map_err(|error| malformed("YAML", error.to_string()))?
        }
        _ => {
            return Err(SettingsError::UnknownFormat {
                path: path.to_owned(),
            });
        }
    };
    match json {
        Json::Object(_) | Json::Null => Ok(json),
        _ => Err(malformed(
            "configuration",
            "the top level must be settings by name".to_owned(),
        )),
    }
}

fn read<T: DeserializeOwned>(tree: Node, known: &Json) -> Result<T, SettingsError> {
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(tree.clone(), &mut track);
    let result: Result<T, _> = serde_ignored::deserialize(tracked, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    match (result, unknown) {
        (Ok(settings), None) => Ok(settings),
        (Ok(_), Some(key)) => Err(unknown_key(&tree, known, plain(&key))),
        (Err(error), _) => Err(explain(
            &tree,
            known,
            plain(&track.path().to_string()),
            error,
        )),
    }
}

/// The path in dots only: serde's trackers mark options and newtypes with a `?`.
fn plain(path: &str) -> Vec<String> {
    path.split('.')
        .filter(|part| !part.is_empty() && *part != "?")
        .map(str::to_owned)
        .collect()
}

fn explain(
    tree: &Node,
    known: &Json,
    path: Vec<String>,
    error: serde_json::Error,
) -> SettingsError {
    let detail = error.to_string();
    // A type that denies unknown fields stops at the field, and the path ends there.
    if detail.starts_with("unknown field") {
        return unknown_key(tree, known, path);
    }
    let node = tree.closest(&path);
    let detail = match missing_field(&detail) {
        Some(field) => format!("`{field}` is required here; set it"),
        None => detail,
    };
    SettingsError::Invalid {
        key: path.join("."),
        origin: node.source.to_string(),
        detail,
    }
}

fn missing_field(detail: &str) -> Option<&str> {
    detail
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next())
}

fn unknown_key(tree: &Node, known: &Json, path: Vec<String>) -> SettingsError {
    let key = path.join(".");
    SettingsError::UnknownKey {
        origin: tree.closest(&path).source.to_string(),
        nearest: nearest(&key, known),
        key,
    }
}

/// The setting that the writer may have meant: one spelled much alike, or one of the same name in another group.
fn nearest(key: &str, known: &Json) -> Option<String> {
    let mut keys = Vec::new();
    collect_keys(known, "", &mut keys);
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    keys.into_iter()
        .map(|candidate| {
            let alike = strsim::normalized_damerau_levenshtein(key, &candidate);
            let same_name = if last(key) == last(&candidate) {
                0.3
            } else {
                0.0
            };
            (alike + same_name, candidate)
        })
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn collect_keys(json: &Json, path: &str, keys: &mut Vec<String>) {
    if let Json::Object(object) = json {
        for (key, value) in object {
            let path = join(path, key);
            collect_keys(value, &path, keys);
            keys.push(path);
        }
    }
}

/// The settings as TOML, with secrets hidden.
pub fn print<T: Serialize>(config: &T) -> String {
    match toml::to_string(config) {
        Ok(text) => text,
        // What TOML cannot hold, such as a number above 2^63, JSON can.
        Err(_) => {
            serde_json::to_string_pretty(config).unwrap_or_else(|error| format!("# {error}\n"))
        }
    }
}
