//! Which aggregates exist: the configured series, compiled to what the hot path needs.

use std::collections::{BTreeMap, HashSet};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use streamgauge_chain::canary;

use super::decode::RawEvent;

/// Most dimensions that one series combines.
pub const DIMENSIONS_MAX: usize = 4;

/// Most series.
pub const SERIES_MAX: usize = 64;

/// The prefix of a dimension that is read from an event's properties.
const PROPERTY_PREFIX: &str = "properties.";

/// One series of aggregates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesConfig {
    /// Its name in queries, for example `page_url` or `event_type,page_url`.
    pub name: String,
    /// What it groups by, at most 4 of: `event_type`, `page_url`, `user_id`, `session_id`,
    /// `tenant`, `properties.NAME`. None: one key for everything.
    #[serde(default)]
    pub dimensions: Vec<String>,
    /// Whether each cell carries a sketch of its distinct users.
    #[serde(default)]
    pub distinct_users: bool,
    /// Whether each cell carries a sketch of the quantiles of `value`.
    #[serde(default)]
    pub quantiles: bool,
}

impl SeriesConfig {
    /// The series that exist unless others are configured.
    pub fn defaults() -> Vec<Self> {
        let series = |name: &str, dimensions: &[&str], quantiles| Self {
            name: String::from(name),
            dimensions: dimensions.iter().copied().map(String::from).collect(),
            distinct_users: true,
            quantiles,
        };
        vec![
            series("all", &[], true),
            series("event_type", &["event_type"], true),
            series("page_url", &["page_url"], false),
        ]
    }
}

/// What is wrong with the configured series.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeriesError {
    /// Too many.
    #[error("series: {0} are configured, at most {SERIES_MAX} are possible")]
    TooMany(usize),
    /// The name of a series that every system has.
    #[error("series: `{0}` is the name of a series that is always there; choose another")]
    Reserved(String),
    /// Two of one name, or one without.
    #[error("series: the name `{0}` is empty or given twice")]
    Name(String),
    /// Too many dimensions, or one of them twice.
    #[error("series `{0}`: at most {DIMENSIONS_MAX} different dimensions can be combined")]
    Dimensions(String),
    /// No such dimension.
    #[error(
        "series `{series}`: no dimension `{dimension}`; there are event_type, page_url, user_id, \
         session_id, tenant and properties.NAME"
    )]
    UnknownDimension {
        /// The series.
        series: String,
        /// The unknown dimension.
        dimension: String,
    },
}

/// Where a dimension's text comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `event_type`
    EventType,
    /// `page_url`
    PageUrl,
    /// `user_id`
    UserId,
    /// `session_id`
    SessionId,
    /// `tenant`
    Tenant,
    /// `properties.NAME`, by the name's place in [`Plan::properties`].
    Property(usize),
}

/// A compiled series.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Places in [`Plan::fields`].
    pub dimensions: Vec<usize>,
    /// Distinct users on.
    pub distinct_users: bool,
    /// Quantiles on.
    pub quantiles: bool,
}

impl Series {
    /// One key per user. No place is looked up in [`Plan::fields`]: users' events would pay for it.
    fn of_canary() -> Self {
        Self {
            name: String::from(canary::SERIES),
            dimensions: vec![0],
            distinct_users: false,
            quantiles: false,
        }
    }
}

/// Everything the aggregator does per event, worked out once.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each field that any series groups by, once.
    pub fields: Vec<Field>,
    /// The series, in configured order; then that of the canary, to which users' events do not add.
    pub series: Vec<Series>,
    /// Whether counts per user and page are kept.
    pub user_pages: bool,
    properties: BTreeMap<String, usize>,
}

impl Plan {
    /// Compiles the configuration.
    ///
    /// # Errors
    /// A [`SeriesError`] that names the series.
    pub fn compile(configs: &[SeriesConfig], user_pages: bool) -> Result<Self, SeriesError> {
        if configs.len() > SERIES_MAX {
            return Err(SeriesError::TooMany(configs.len()));
        }
        let mut plan = Self {
            fields: Vec::new(),
            series: Vec::new(),
            user_pages,
            properties: BTreeMap::new(),
        };
        let mut names = HashSet::new();
        for config in configs {
            if config.name.is_empty() || !names.insert(&config.name) {
                return Err(SeriesError::Name(config.name.clone()));
            }
            if config.name == canary::SERIES {
                return Err(SeriesError::Reserved(config.name.clone()));
            }
            let series = plan.compile_one(config)?;
            plan.series.push(series);
        }
        plan.series.push(Series::of_canary());
        Ok(plan)
    }

    fn compile_one(&mut self, config: &SeriesConfig) -> Result<Series, SeriesError> {
        let distinct: HashSet<_> = config.dimensions.iter().collect();
        if config.dimensions.len() > DIMENSIONS_MAX || distinct.len() < config.dimensions.len() {
            return Err(SeriesError::Dimensions(config.name.clone()));
        }
        let mut dimensions = Vec::new();
        for dimension in &config.dimensions {
            let field = self
                .field(dimension)
                .ok_or_else(|| SeriesError::UnknownDimension {
                    series: config.name.clone(),
                    dimension: dimension.clone(),
                })?;
            let place = self
                .fields
                .iter()
                .position(|known| *known == field)
                .unwrap_or_else(|| {
                    self.fields.push(field);
                    self.fields.len() - 1
                });
            dimensions.push(place);
        }
        Ok(Series {
            name: config.name.clone(),
            dimensions,
            distinct_users: config.distinct_users,
            quantiles: config.quantiles,
        })
    }

    fn field(&mut self, dimension: &str) -> Option<Field> {
        match dimension {
            "event_type" => Some(Field::EventType),
            "page_url" => Some(Field::PageUrl),
            "user_id" => Some(Field::UserId),
            "session_id" => Some(Field::SessionId),
            "tenant" => Some(Field::Tenant),
            _ => {
                let name = dimension.strip_prefix(PROPERTY_PREFIX)?;
                let next = self.properties.len();
                let place = *self.properties.entry(String::from(name)).or_insert(next);
                (!name.is_empty()).then_some(Field::Property(place))
            }
        }
    }

    /// The place of the canary's series; users' are those before it.
    pub fn canary(&self) -> usize {
        self.series.len() - 1
    }

    /// How many properties the series group by.
    pub fn properties(&self) -> usize {
        self.properties.len()
    }

    /// Reads the wanted properties into `found`: text as it is, numbers and booleans as written,
    /// empty for what is absent, null or compound. Properties that are not a JSON object have
    /// none of them; they are the client's and carried, never judged.
    pub fn read_properties(&self, event: &RawEvent<'_>, found: &mut Vec<String>) {
        found.clear();
        found.resize(self.properties.len(), String::new());
        if self.properties.is_empty() || event.properties.is_empty() {
            return;
        }
        let mut deserializer = serde_json::Deserializer::from_slice(event.properties);
        let picker = Picker {
            wanted: &self.properties,
            found,
        };
        if deserializer.deserialize_map(picker).is_err() {
            found.iter_mut().for_each(String::clear);
        }
    }
}

struct Picker<'p> {
    wanted: &'p BTreeMap<String, usize>,
    found: &'p mut [String],
}

impl<'de> Visitor<'de> for Picker<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.wanted.get(name.as_ref()) {
                None => drop(map.next_value::<serde::de::IgnoredAny>()?),
                Some(place) => {
                    let value: &RawValue = map.next_value()?;
                    self.found[*place] = text_of(value.get());
                }
            }
        }
        Ok(())
    }
}

/// The text of a JSON value as a key.
fn text_of(json: &str) -> String {
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str(json).unwrap_or_default(),
        Some(b'n' | b'{' | b'[') | None => String::new(),
        Some(_) => String::from(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, dimensions: &[&str]) -> SeriesConfig {
        SeriesConfig {
            name: String::from(name),
            dimensions: dimensions.iter().copied().map(String::from).collect(),
            distinct_users: false,
            quantiles: false,
        }
    }

    #[test]
    fn the_defaults_compile() {
        let plan = Plan::compile(&SeriesConfig::defaults(), true).expect("defaults");
        assert_eq!(plan.fields, [Field::EventType, Field::PageUrl]);
        assert_eq!((plan.series.len(), plan.canary()), (4, 3));
    }

    #[test]
    fn fields_are_shared_between_series() {
        let configs = [
            config("a", &["page_url", "properties.plan"]),
            config("b", &["properties.plan", "event_type", "page_url"]),
        ];
        let plan = Plan::compile(&configs, false).expect("valid");
        assert_eq!(
            plan.fields,
            [Field::PageUrl, Field::Property(0), Field::EventType]
        );
        assert_eq!(plan.series[1].dimensions, [1, 2, 0]);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (vec![config("a", &["page"])], "no dimension `page`"),
            (
                vec![config("a", &["properties."])],
                "no dimension `properties.`",
            ),
            (
                vec![config("a", &[]), config("a", &[])],
                "`a` is empty or given twice",
            ),
            (vec![config("", &[])], "`` is empty"),
            (
                vec![config("canary", &[])],
                "`canary` is the name of a series that is always there",
            ),
            (
                vec![config("a", &["tenant", "tenant"])],
                "different dimensions",
            ),
            (vec![config("a", &["tenant"; 5])], "at most 4"),
        ];
        for (configs, expected) in cases {
            let error = Plan::compile(&configs, true)
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn properties_become_keys() {
        let configs = [config("a", &["properties.plan", "properties.n"])];
        let plan = Plan::compile(&configs, true).expect("valid");
        let cases: [(&[u8], [&str; 2]); 8] = [
            (br#"{"plan":"pro","n":3.50}"#, ["pro", "3.50"]),
            (
                br#"{"x":{"plan":"no"},"plan":"a\u00e9","n":true}"#,
                ["a\u{e9}", "true"],
            ),
            (br#"{"plan":null,"n":[1]}"#, ["", ""]),
            (br#"{"pl\u0061n":"escaped"}"#, ["escaped", ""]),
            (br#"{}"#, ["", ""]),
            (b"", ["", ""]),
            (br#"{"plan":"pro""#, ["", ""]),
            (b"[1]", ["", ""]),
        ];
        let mut found = Vec::new();
        for (properties, expected) in cases {
            plan.read_properties(
                &RawEvent {
                    properties,
                    ..RawEvent::default()
                },
                &mut found,
            );
            assert_eq!(found, expected, "{}", String::from_utf8_lossy(properties));
        }
    }
}
