//! Loading through the public surface: which source wins, what text is read as, and what errors say.
#![allow(
    clippy::unwrap_used,
    reason = "what the tests share may unwrap as tests do"
)]

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};
use streamgauge_settings::{ConfigArgs, Loader, Secret, SecretUrl, SettingsError, print};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    kafka: Kafka,
    name: String,
    ratio: f64,
    limit: u32,
    offset: i64,
    on: bool,
    mode: Mode,
    tags: Vec<String>,
    ports: Vec<u16>,
    weights: BTreeMap<String, f64>,
    clients: Vec<Client>,
    parent: Option<String>,
    retries: Option<u8>,
    store: SecretUrl,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Kafka {
    brokers: String,
    password: Secret,
    linger_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Embedded,
    Cluster,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    id: String,
    token: Secret,
}

impl Default for Kafka {
    fn default() -> Self {
        Kafka {
            brokers: "127.0.0.1:9092".to_owned(),
            password: Secret::from("default-password"),
            linger_ms: 5,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            kafka: Kafka::default(),
            name: "streamgauge".to_owned(),
            ratio: 0.5,
            limit: 10,
            offset: 0,
            on: false,
            mode: Mode::Embedded,
            tags: vec!["a".to_owned()],
            ports: Vec::new(),
            weights: BTreeMap::new(),
            clients: Vec::new(),
            parent: None,
            retries: Some(3),
            store: SecretUrl::from("postgres://u:p@db/x"),
        }
    }
}

fn file(ending: &str, text: &str) -> tempfile::TempPath {
    let mut file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into_temp_path()
}

fn loader() -> Loader {
    Loader::new("SG_TEST")
}

fn env(vars: &[(&str, &str)]) -> Vec<(String, String)> {
    vars.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn set(assignments: &[&str]) -> Vec<String> {
    assignments.iter().map(|text| (*text).to_owned()).collect()
}

fn load(loader: Loader) -> Config {
    match loader.load() {
        Ok(config) => config,
        Err(error) => panic!("{error}"),
    }
}

fn refused(loader: Loader) -> String {
    loader.load::<Config>().unwrap_err().to_string()
}

#[test]
fn without_sources_the_defaults_come_back_whole() {
    let config = load(loader());
    assert_eq!(config, Config::default());
    assert_eq!(config.kafka.password.expose(), "default-password");
    assert_eq!(config.store.expose(), "postgres://u:p@db/x");
}

#[test]
fn each_source_goes_over_the_ones_before() {
    let toml = file(
        ".toml",
        "limit = 1\noffset = 1\nname = 'file'\n[kafka]\nlinger_ms = 1\nbrokers = 'file:1'\n",
    );
    let layered = || {
        loader().file(Some(toml.to_path_buf())).environment(env(&[
            ("SG_TEST_KAFKA__LINGER_MS", "2"),
            ("SG_TEST_OFFSET", "2"),
            ("SG_TEST_NAME", "env"),
            ("SG_OTHER_LIMIT", "99"),
            ("SG_TESTS", "99"),
            ("PATH", "/bin"),
        ]))
    };
    let config = load(layered());
    assert_eq!(
        (config.limit, config.offset, config.name.as_str()),
        (1, 2, "env")
    );
    assert_eq!(
        (config.kafka.linger_ms, config.kafka.brokers.as_str()),
        (2, "file:1")
    );
    let config = load(
        layered()
            .set(&set(&["offset=3", "name=set"]))
            .override_with("offset", 4),
    );
    assert_eq!(
        (config.limit, config.offset, config.name.as_str()),
        (1, 4, "set")
    );
}

#[test]
fn what_kubernetes_says_about_services_is_not_a_setting() {
    let config = load(loader().environment(env(&[
        ("SG_TEST_SERVICE_HOST", "10.0.0.1"),
        ("SG_TEST_SERVICE_PORT", "8081"),
        ("SG_TEST_SERVICE_PORT_HTTP", "8081"),
        ("SG_TEST_PORT", "tcp://10.0.0.1:8081"),
        ("SG_TEST_PORT_8081_TCP", "tcp://10.0.0.1:8081"),
        ("SG_TEST_PORT_8081_TCP_PROTO", "tcp"),
        ("SG_TEST_HEADLESS_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("SG_TEST_LIMIT", "7"),
    ])));
    let limit = 7;
    assert_eq!(
        config,
        Config {
            limit,
            ..Config::default()
        }
    );
    let error = refused(loader().environment(env(&[("SG_TEST_PORT", "80")])));
    assert!(error.starts_with("unknown setting `port`"), "{error}");
}

#[test]
fn text_is_read_as_what_the_setting_is() {
    type Change = fn(&mut Config);
    let cases: &[(&str, &str, Change)] = &[
        ("name", "1234", |c| c.name = "1234".into()),
        ("name", "true", |c| c.name = "true".into()),
        ("name", "a,b=c", |c| c.name = "a,b=c".into()),
        ("kafka.password", "007", |c| c.kafka.password = "007".into()),
        ("kafka.brokers", "a:1,b:2", |c| {
            c.kafka.brokers = "a:1,b:2".into()
        }),
        ("limit", "4_000", |c| c.limit = 4_000),
        ("offset", "-7", |c| c.offset = -7),
        ("ratio", "1", |c| c.ratio = 1.0),
        ("ratio", "0.25", |c| c.ratio = 0.25),
        ("on", "true", |c| c.on = true),
        ("on", "1", |c| c.on = true),
        ("mode", "cluster", |c| c.mode = Mode::Cluster),
        ("tags", "x, y,z", |c| {
            c.tags = vec!["x".into(), "y".into(), "z".into()]
        }),
        ("tags", "[\"x,y\", 'z']", |c| {
            c.tags = vec!["x,y".into(), "z".into()]
        }),
        ("tags", "", |c| c.tags = Vec::new()),
        ("tags", "[]", |c| c.tags = Vec::new()),
        ("ports", "80,443", |c| c.ports = vec![80, 443]),
        ("ports", "[80, 443]", |c| c.ports = vec![80, 443]),
        ("parent", "12", |c| c.parent = Some("12".into())),
        ("parent", "", |c| c.parent = None),
        ("retries", "", |c| c.retries = None),
        ("retries", "9", |c| c.retries = Some(9)),
        ("weights.click", "1.5", |c| {
            c.weights = [("click".to_owned(), 1.5)].into()
        }),
        ("weights", "{ a = 1, b = 2.5 }", |c| {
            c.weights = [("a".to_owned(), 1.0), ("b".to_owned(), 2.5)].into();
        }),
        ("kafka", "{ linger_ms = 9 }", |c| c.kafka.linger_ms = 9),
        ("clients", "[{ id = 'a', token = 't' }]", |c| {
            c.clients = vec![Client {
                id: "a".into(),
                token: "t".into(),
            }];
        }),
    ];
    for (key, value, change) in cases {
        let mut expected = Config::default();
        change(&mut expected);
        let variable = format!("SG_TEST_{}", key.replace('.', "__").to_uppercase());
        let from_env = load(loader().environment([(variable, (*value).to_owned())]));
        assert_eq!(from_env, expected, "{key}={value} from the environment");
        let from_set = load(loader().set(&[format!("{key}={value}")]));
        assert_eq!(from_set, expected, "--set {key}={value}");
    }
    let quoted = load(loader().set(&set(&["name=\"a b\""])));
    assert_eq!(quoted.name, "a b");
}

#[test]
fn toml_and_yaml_say_the_same() {
    let toml = file(
        ".toml",
        "mode = 'cluster'\ntags = ['x']\n[weights]\nclick = 1\n[kafka]\npassword = 's'\n[[clients]]\nid = 'a'\ntoken = 't'\n",
    );
    let yaml = file(
        ".yaml",
        "mode: cluster\ntags: [x]\nweights: {click: 1}\nkafka:\n  password: s\nclients:\n  - id: a\n    token: t\n",
    );
    let from_toml = load(loader().file(Some(toml.to_path_buf())));
    let from_yaml = load(loader().file(Some(yaml.to_path_buf())));
    assert_eq!(from_toml, from_yaml);
    assert_eq!(from_toml.clients[0].token.expose(), "t");
    assert_eq!(from_toml.kafka.password.expose(), "s");
    assert_eq!(
        from_toml.kafka.linger_ms, 5,
        "what the file does not name stays"
    );
}

#[test]
fn a_yaml_file_may_be_empty_or_have_empty_sections() {
    for text in ["", "# nothing\n", "kafka:\n  # linger_ms: 3\n"] {
        let yaml = file(".yml", text);
        assert_eq!(
            load(loader().file(Some(yaml.to_path_buf()))),
            Config::default(),
            "{text:?}"
        );
    }
}

#[test]
fn an_unknown_key_is_told_with_its_source_and_what_is_near() {
    let toml = file(".toml", "[kafka]\nbroker = 'x'\n");
    let error = refused(loader().file(Some(toml.to_path_buf())));
    let expected = format!(
        "unknown setting `kafka.broker` (from {}); did you mean `kafka.brokers`?",
        toml.display()
    );
    assert_eq!(error, expected);

    let error = refused(loader().environment(env(&[("SG_TEST_LINGER_MS", "3")])));
    assert_eq!(
        error,
        "unknown setting `linger_ms` (from the environment variable SG_TEST_LINGER_MS); did you mean `kafka.linger_ms`?"
    );
    let error = refused(loader().set(&set(&["zzz.qqq=3"])));
    assert_eq!(
        error,
        "unknown setting `zzz` (from --set zzz.qqq); --print-config lists the settings there are"
    );
}

#[test]
fn unknown_keys_are_found_where_the_type_does_not_mind() {
    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Lax {
        inner: Inner,
    }
    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        size: u32,
    }
    let error = loader()
        .set(&set(&["inner.sise=3"]))
        .load::<Lax>()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown setting `inner.sise` (from --set inner.sise); did you mean `inner.size`?"
    );
}

#[test]
fn a_wrong_value_is_told_with_its_source() {
    let toml = file(".toml", "[kafka]\nlinger_ms = 'soon'\n");
    for (loader, parts) in [
        (
            loader().file(Some(toml.to_path_buf())),
            ["setting `kafka.linger_ms` (from /", "\"soon\"", "u64"],
        ),
        (
            loader().environment(env(&[("SG_TEST_LIMIT", "-1")])),
            [
                "setting `limit` (from the environment variable SG_TEST_LIMIT)",
                "\"-1\"",
                "u32",
            ],
        ),
        (
            loader().set(&set(&["mode=clustr"])),
            [
                "setting `mode` (from --set mode)",
                "clustr",
                "`embedded` or `cluster`",
            ],
        ),
        (
            loader().set(&set(&["on=maybe"])),
            ["setting `on` (from --set on)", "maybe", "boolean"],
        ),
        (
            loader().set(&set(&["kafka=3"])),
            [
                "setting `kafka` (from --set kafka)",
                "group of settings",
                "",
            ],
        ),
        (
            loader().set(&set(&["clients=[{ id = 'a' }]"])),
            [
                "setting `clients[0]` (from --set clients)",
                "`token` is required",
                "",
            ],
        ),
    ] {
        let error = refused(loader);
        for part in parts {
            assert!(error.contains(part), "{part:?} not in {error:?}");
        }
    }
}

#[test]
fn a_secret_does_not_show_in_errors_or_in_print() {
    let toml = file(".toml", "[kafka]\npassword = ['hunter2']\n");
    let error = refused(loader().file(Some(toml.to_path_buf())));
    assert!(!error.contains("hunter2"), "{error}");
    let printed = print(&load(loader().set(&set(&[
        "kafka.password=hunter2",
        "store=postgres://u:hunter2@db/x",
    ]))));
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("password = \"***\""), "{printed}");
    assert!(
        printed.contains("store = \"postgres://u:***@db/x\""),
        "{printed}"
    );
}

#[test]
fn what_is_printed_can_be_loaded_again() {
    let config = Config {
        weights: [("a".to_owned(), 1.0)].into(),
        clients: vec![Client {
            id: "a".into(),
            token: "".into(),
        }],
        kafka: Kafka {
            password: "".into(),
            ..Kafka::default()
        },
        store: "sqlite:x.db".into(),
        ..Config::default()
    };
    let toml = file(".toml", &print(&config));
    assert_eq!(load(loader().file(Some(toml.to_path_buf()))), config);
}

#[test]
fn files_and_assignments_that_cannot_be_read_are_told() {
    let gone = loader()
        .file(Some("/nonexistent/x.toml".into()))
        .load::<Config>();
    assert!(
        matches!(gone, Err(SettingsError::Unreadable { .. })),
        "{gone:?}"
    );
    let odd = file(".ini", "");
    let odd = loader().file(Some(odd.to_path_buf())).load::<Config>();
    assert!(
        matches!(odd, Err(SettingsError::UnknownFormat { .. })),
        "{odd:?}"
    );
    for (ending, text) in [
        (".toml", "a = = 1"),
        (".yaml", "a: [1"),
        (".yaml", "- 1\n- 2\n"),
        (".yaml", "text"),
    ] {
        let broken = file(ending, text);
        let broken = loader().file(Some(broken.to_path_buf())).load::<Config>();
        assert!(
            matches!(broken, Err(SettingsError::Malformed { .. })),
            "{text}: {broken:?}"
        );
    }
    for assignment in ["limit", "=3", "kafka..x=3"] {
        let refused = loader().set(&set(&[assignment])).load::<Config>();
        assert!(
            matches!(refused, Err(SettingsError::Assignment { .. })),
            "{assignment}: {refused:?}"
        );
    }
}

#[test]
fn the_arguments_flatten_into_a_command() {
    use clap::Parser;
    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        config: ConfigArgs,
    }
    let toml = file(".toml", "limit = 1\n");
    let path = toml.display().to_string();
    let command = Command::parse_from([
        "x",
        "--config",
        &path,
        "--set",
        "offset=5",
        "--set",
        "kafka.brokers=h:1,h:2",
        "--print-config",
    ]);
    assert!(command.config.print_config);
    let config = load(command.config.loader("SG_TEST_UNSET_PREFIX"));
    assert_eq!(
        (config.limit, config.offset, config.kafka.brokers.as_str()),
        (1, 5, "h:1,h:2")
    );
}
