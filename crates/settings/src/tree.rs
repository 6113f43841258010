//! The settings of all sources as one tree, whose leaves remember where they came from. The environment and `--set`
//! hand in bare text, and only the type of the setting says what it means ("1234" may be a number or a password), so
//! text stays text until it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, VariantAccess, Visitor,
};
use serde_json::Value as Json;

use crate::error::SettingsError;

/// Where a value was set, in words.
pub(crate) type Source = Arc<str>;

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A number, a boolean, a string, a list or null, with its type.
    Typed(Json),
    /// Bare text, to be read as whatever is asked for.
    Text(String),
    Table(BTreeMap<String, Node>),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) source: Source,
}

impl Node {
    pub(crate) fn table(source: &Source) -> Node {
        Node {
            value: Value::Table(BTreeMap::new()),
            source: Arc::clone(source),
        }
    }

    pub(crate) fn text(text: impl Into<String>, source: &Source) -> Node {
        Node {
            value: Value::Text(text.into()),
            source: Arc::clone(source),
        }
    }

    pub(crate) fn from_json(json: Json, source: &Source) -> Node {
        let value = match json {
            Json::Object(object) => Value::Table(
                object
                    .into_iter()
                    .map(|(key, value)| (key, Node::from_json(value, source)))
                    .collect(),
            ),
            other => Value::Typed(other),
        };
        Node {
            value,
            source: Arc::clone(source),
        }
    }

    /// Puts `node` at the dotted `key`, over what is there.
    pub(crate) fn insert(&mut self, key: &str, node: Node) -> Result<(), SettingsError> {
        let mut parts = key.split('.').rev();
        let last = parts.next().unwrap_or_default().to_owned();
        let mut wrapped = Node::table(&node.source);
        if let Value::Table(table) = &mut wrapped.value {
            table.insert(last, node);
        }
        for part in parts {
            let mut outer = Node::table(&wrapped.source);
            if let Value::Table(table) = &mut outer.value {
                table.insert(part.to_owned(), wrapped);
            }
            wrapped = outer;
        }
        self.merge(wrapped, "")
    }

    /// Lays `over` on top of this node: tables join, anything else replaces.
    pub(crate) fn merge(&mut self, over: Node, path: &str) -> Result<(), SettingsError> {
        let is_table = matches!(self.value, Value::Table(_));
        match (&mut self.value, over.value) {
            (Value::Table(table), Value::Table(above)) => {
                self.source = over.source;
                for (key, node) in above {
                    match table.get_mut(&key) {
                        Some(below) => below.merge(node, &join(path, &key))?,
                        None => {
                            table.insert(key, node);
                        }
                    }
                }
            }
            // A section whose lines are all commented out reads as null in YAML.
            (Value::Table(_), Value::Typed(Json::Null)) => {}
            (Value::Table(_), Value::Text(text)) if inline_table(&text).is_some() => {
                let json = inline_table(&text).unwrap_or_default();
                self.merge(Node::from_json(json, &over.source), path)?;
            }
            (_, value) => {
                if is_table {
                    return Err(SettingsError::Shape {
                        key: path.to_owned(),
                        origin: over.source.to_string(),
                        detail: "this is a group of settings; set the ones inside it",
                    });
                }
                self.value = value;
                self.source = over.source;
            }
        }
        Ok(())
    }

    /// The node at a path, or the closest one above it.
    pub(crate) fn closest(&self, path: &[String]) -> &Node {
        let mut node = self;
        for part in path {
            match &node.value {
                Value::Table(table) => match table.get(part) {
                    Some(inner) => node = inner,
                    None => return node,
                },
                _ => return node,
            }
        }
        node
    }
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Reads text as a TOML value.
fn toml_value(text: &str) -> Option<Json> {
    let mut table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    if table.len() != 1 {
        return None;
    }
    from_toml(table.remove("value")?).into()
}

fn inline_table(text: &str) -> Option<Json> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    toml_value(text).filter(Json::is_object)
}

/// TOML's dates become strings, as settings have no type for them.
pub(crate) fn from_toml(value: toml::Value) -> Json {
    match value {
        toml::Value::String(text) => Json::String(text),
        toml::Value::Integer(number) => Json::from(number),
        toml::Value::Float(number) => Json::from(number),
        toml::Value::Boolean(flag) => Json::Bool(flag),
        toml::Value::Datetime(at) => Json::String(at.to_string()),
        toml::Value::Array(items) => Json::Array(items.into_iter().map(from_toml).collect()),
        toml::Value::Table(table) => Json::Object(
            table
                .into_iter()
                .map(|(key, value)| (key, from_toml(value)))
                .collect(),
        ),
    }
}

/// Text where it stands for one item of a list or for a whole value.
pub(crate) struct Text(pub(crate) String);

type Error = serde_json::Error;

impl<'de> IntoDeserializer<'de, Error> for Text {
    type Deserializer = Text;

    fn into_deserializer(self) -> Text {
        self
    }
}

impl<'de> IntoDeserializer<'de, Error> for Node {
    type Deserializer = Node;

    fn into_deserializer(self) -> Node {
        self
    }
}

/// Hands a call on to whatever the node holds.
macro_rules! forward {
    ($($method:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.value {
                Value::Typed(json) => json.$method(visitor),
                Value::Text(text) => Text(text).$method(visitor),
                Value::Table(table) => MapDeserializer::new(table.into_iter()).$method(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Node {
    type Error = Error;

    forward!(
        deserialize_any,
        deserialize_bool,
        deserialize_i8,
        deserialize_i16,
        deserialize_i32,
        deserialize_i64,
        deserialize_i128,
        deserialize_u8,
        deserialize_u16,
        deserialize_u32,
        deserialize_u64,
        deserialize_u128,
        deserialize_f32,
        deserialize_f64,
        deserialize_char,
        deserialize_str,
        deserialize_string,
        deserialize_bytes,
        deserialize_byte_buf,
        deserialize_unit,
        deserialize_seq,
        deserialize_map,
        deserialize_identifier,
        deserialize_ignored_any
    );

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Typed(Json::Null) => visitor.visit_none(),
            Value::Text(text) if text.is_empty() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::Typed(json) => json.deserialize_enum(name, variants, visitor),
            Value::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Value::Table(mut table) => match (table.len(), table.pop_first()) {
                (1, Some((variant, content))) => visitor.visit_enum(Variant { variant, content }),
                _ => Err(de::Error::custom("expected the name of one variant")),
            },
        }
    }
}

/// A variant with content, written as a table with one key.
struct Variant {
    variant: String,
    content: Node,
}

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Node;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Node), Error> {
        let variant =
            seed.deserialize(IntoDeserializer::<Error>::into_deserializer(self.variant))?;
        Ok((variant, self.content))
    }
}

impl<'de> VariantAccess<'de> for Node {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        de::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }
}

/// Reads text as the number that is asked for; text that is none is handed on, for an error that shows it.
macro_rules! parse {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let digits = self.0.trim().replace('_', "");
            match digits.parse::<$type>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => visitor.visit_string(self.0),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Text {
    type Error = Error;

    parse!(
        deserialize_i8 visit_i64 i64, deserialize_i16 visit_i64 i64, deserialize_i32 visit_i64 i64,
        deserialize_i64 visit_i64 i64, deserialize_i128 visit_i128 i128, deserialize_u8 visit_u64 u64,
        deserialize_u16 visit_u64 u64, deserialize_u32 visit_u64 u64, deserialize_u64 visit_u64 u64,
        deserialize_u128 visit_u128 u128, deserialize_f32 visit_f64 f64, deserialize_f64 visit_f64 f64
    );

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match toml_value(&self.0) {
            Some(json) => json.deserialize_any(visitor),
            None => visitor.visit_string(self.0),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => visitor.visit_bool(true),
            "false" | "0" | "no" | "off" => visitor.visit_bool(false),
            _ => visitor.visit_string(self.0),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_empty() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    /// A list is `["a", "b"]`, as in TOML, or just `a,b`.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.0.trim();
        if text.starts_with('[')
            && let Some(Json::Array(items)) = toml_value(text)
        {
            return SeqDeserializer::new(items.into_iter()).deserialize_seq(visitor);
        }
        let inner = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        let items: Vec<Text> = inner
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| Text(item.to_owned()))
            .collect();
        SeqDeserializer::new(items.into_iter()).deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match inline_table(&self.0) {
            Some(json) => json.deserialize_map(visitor),
            None => visitor.visit_string(self.0),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match inline_table(&self.0) {
            Some(json) => json.deserialize_enum(name, variants, visitor),
            None => visitor.visit_enum(self.0.into_deserializer()),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    serde::forward_to_deserialize_any! { unit unit_struct ignored_any }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }
}
