use std::time::Duration;

use proptest::prelude::*;

use super::*;

setting_enum! {
    /// How a thing is done.
    pub enum Manner {
        /// Well, but slowly.
        Careful = "careful",
        /// Fast.
        Quick = "quick",
    }
}

settings! {
    /// The connection to the others.
    pub struct Client {
        /// Longest wait for an answer.
        pub timeout: Duration = Duration::from_secs(5) => Duration::from_millis(1)..,
        /// Password of the others. They keep it too.
        pub password: Secret = Secret::default(),
        /// Who is asked.
        pub peers: Vec<HostPort> = Vec::new(),
    }
}

settings! {
    /// Everything.
    pub struct Config {
        /// Whether it runs.
        pub enabled: bool = false,
        /// A name.
        pub name: String = "nobody".to_owned(),
        /// Largest message.
        pub max_message_size: ByteSize = ByteSize::mib(100) => ByteSize::bytes(1)..=ByteSize::gib(1),
        /// How often. `none` is never.
        pub interval: Option<Duration> = Some(Duration::from_millis(100)) => Duration::from_millis(1)..,
        /// How many at once.
        ///
        /// More is faster.
        pub concurrency: usize = 4 => 1..=64,
        /// How.
        pub manner: Manner = Manner::Careful,
        /// Its client.
        pub client: Client,
    }
    check |config| {
        if config.enabled && config.client.peers.is_empty() {
            return Err("`enabled` needs `client.peers`".to_owned());
        }
        Ok(())
    };
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Steps(Vec<Record>);

impl SettingValue for Steps {
    type Bound = ();
    const RECORDS: Option<&'static [&'static str]> = Some(&["of"]);

    fn type_name() -> String {
        "steps".to_owned()
    }

    fn expected() -> String {
        "steps".to_owned()
    }

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_records(parse_records(text, &["of"])?)
    }

    fn parse_records(records: Vec<Record>) -> Result<Self, String> {
        if records.iter().any(|record| record.entries.is_empty()) {
            return Err("a step is empty".to_owned());
        }
        Ok(Self(records))
    }

    fn show(&self) -> Shown {
        Shown::Bare("[]".to_owned())
    }
}

settings! {
    /// What is done one after the other.
    pub struct Work {
        /// The steps.
        pub steps: Steps = Steps::default(),
    }
}

#[test]
fn lists_of_mappings() {
    let record = |entries: &[(&str, Given)]| Record {
        entries: entries.iter().map(|(key, value)| (key.to_string(), value.clone())).collect(),
    };
    let text = |text: &str| Given::Text(text.to_owned());
    let expected = [record(&[("what", text("012")), ("of", Given::List(vec!["a".into(), "true".into()]))]), {
        record(&[("what", text("${1} and ~")), ("how", text("")), ("on", text("yes"))])
    }];
    let yaml = "steps:\n- what: 012\n  of: [a, true]\n- {what: '${1} and ~', how: '', on: yes}\n";
    let file = |text| Some(YamlFile { name: "skald.yaml", text, expand_env: true });
    let work: Work = load(file(yaml), &Environment::default(), &[]).unwrap();
    assert_eq!(work.steps.0, expected);
    let flag = Flag { name: "steps".to_owned(), value: "[{\"what\": 012, \"of\": [a]}]".to_owned() };
    let work: Work = load(file(yaml), &Environment::default(), &[flag]).unwrap();
    assert_eq!(work.steps.0, [record(&[("what", text("012")), ("of", Given::List(vec!["a".into()]))])]);
    let empty: Work = load(file("steps:\n"), &Environment::default(), &[]).unwrap();
    assert_eq!(empty, Work::default());
    for (yaml, expected) in [
        ("steps: [{}]", "skald.yaml:1:8: steps: a step is empty"),
        ("steps: [{what: [x]}]", "invalid type: sequence"),
        ("steps: [{of: x}]", "expected a sequence"),
        ("steps: [x]", "expected a mapping"),
        ("steps: [{what: x, what: y}]", "`what` is set twice in one mapping"),
    ] {
        let error = load::<Work>(file(yaml), &Environment::default(), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::new(variables.iter().map(|(name, value)| (name.to_string(), value.to_string())))
}

fn flags(arguments: &[&str]) -> Result<Arguments, LoadError> {
    let arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
    read_flags(&arguments, &entries(&Config::default()), &["help"])
}

fn from_yaml(text: &str) -> Result<Config, LoadError> {
    load(Some(YamlFile { name: "skald.yaml", text, expand_env: false }), &Environment::default(), &[])
}

#[track_caller]
fn refused_yaml(text: &str, expected: &str) {
    let error = from_yaml(text).expect_err("should have been refused");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn yaml_sets_every_type() {
    let config = from_yaml(
        "enabled: true\nname: 012\nmax_message_size: 1GB\ninterval: none\nconcurrency: 7\nmanner: quick\n\
         client:\n  timeout: 1m30s\n  password: hunter2\n  peers: [a:1, '[::1]:2']\n",
    )
    .unwrap();
    let expected = Config {
        enabled: true,
        name: "012".to_owned(),
        max_message_size: ByteSize::bytes(1_000_000_000),
        interval: None,
        concurrency: 7,
        manner: Manner::Quick,
        client: Client {
            timeout: Duration::from_secs(90),
            password: Secret::new("hunter2"),
            peers: vec![HostPort::new("a", 1), HostPort::new("::1", 2)],
        },
    };
    assert_eq!(config, expected);
    let peers_as_text = from_yaml("client:\n  peers: a:1, [::1]:2\n").unwrap();
    assert_eq!(peers_as_text.client.peers, expected.client.peers);
}

#[test]
fn an_empty_file_or_section_keeps_the_defaults() {
    for text in ["", "# nothing\n", "client:\n", "{}", "client: {}\n", "---\n", "client: ~"] {
        assert_eq!(from_yaml(text), Ok(Config::default()), "{text:?}");
    }
}

#[test]
fn refused_yaml_names_place_value_and_expectation() {
    refused_yaml("name: a\nnmae: b\n", "skald.yaml:2:1: unknown setting `nmae`, did you mean `name`?");
    refused_yaml(
        "client:\n  timeuot: 1s\n",
        "skald.yaml:2:3: unknown setting `client.timeuot`, did you mean `client.timeout`?",
    );
    refused_yaml("timeout: 1s\n", "skald.yaml:1:1: unknown setting `timeout`, did you mean `client.timeout`?");
    refused_yaml("zebra_crossing: 1\n", "skald.yaml:1:1: unknown setting `zebra_crossing`");
    refused_yaml("name: a\nname: b\n", "skald.yaml:2:1: `name` is set twice in this file");
    refused_yaml(
        "client: {timeout: 1s}\nname: x\nclient: {timeout: 2s}\n",
        "skald.yaml:3:1: `client` is set twice in this file",
    );
    refused_yaml(
        "concurrency: many\n",
        "skald.yaml:1:14: concurrency: \"many\" is not valid, expected a whole number from 0 to \
         18446744073709551615, at least 1 and at most 64",
    );
    refused_yaml(
        "concurrency: 65\n",
        "skald.yaml:1:14: concurrency: \"65\" is not valid (out of range), expected a whole number from 0 to \
         18446744073709551615, at least 1 and at most 64",
    );
    refused_yaml(
        "interval: 0s\n",
        "skald.yaml:1:11: interval: \"0s\" is not valid (out of range), expected a duration such as `100ms`, `2h` or \
         `1h30m`, or `none`, at least 1ms",
    );
    refused_yaml(
        "client:\n  timeout: 30\n",
        "skald.yaml:2:12: client.timeout: \"30\" is not valid (the unit is missing), expected a duration such as \
         `100ms`, `2h` or `1h30m`, at least 1ms",
    );
    refused_yaml(
        "manner: quikc\n",
        "skald.yaml:1:9: manner: \"quikc\" is not valid (`quikc` is unknown, did you mean `quick`?), expected one of \
         `careful`, `quick`",
    );
    refused_yaml("enabled: yes\n", "skald.yaml:1:10: enabled: \"yes\" is not valid, expected `true` or `false`");
    refused_yaml(
        "client: 3\n",
        "skald.yaml:1:9: client: invalid type: integer `3`, expected a section (a mapping of setting names to values)",
    );
    refused_yaml("name: {a: b}\n", "skald.yaml:1:7: name: invalid type: map, expected text");
    refused_yaml("a: 1\n---\nb: 2\n", "skald.yaml:1:1: unknown setting `a`");
    refused_yaml("name: x\n---\nname: y\n", "skald.yaml: holds more than one YAML document, expected one");
    refused_yaml("enabled: true\n", "settings: `enabled` needs `client.peers`");
    refused_yaml("name: [a]\n", "skald.yaml:1:7: name: invalid type: sequence, expected text");
    let error = from_yaml("name: 'x\n").unwrap_err();
    assert!(error.to_string().starts_with("skald.yaml:"), "{error}");
    let error = from_yaml("a: &a [*a]\n").unwrap_err();
    assert!(error.to_string().starts_with("skald.yaml:1:1: "), "{error}");
}

#[test]
fn a_refused_secret_is_not_repeated() {
    let error = from_yaml("client:\n  password: '********'\n").unwrap_err().to_string();
    assert!(error.contains("this is the mask of a secret"), "{error}");
    let error = load::<Config>(None, &environment(&[("SKALD_CLIENT_PEERS", "x")]), &[]).unwrap_err();
    assert!(error.to_string().starts_with("environment variable SKALD_CLIENT_PEERS: \"x\" is not valid"), "{error}");
}

#[test]
fn later_sources_win() {
    let file = YamlFile { name: "f", text: "name: file\nconcurrency: 2\nmanner: quick\n", expand_env: false };
    let variables = environment(&[("SKALD_NAME", "environment"), ("SKALD_CONCURRENCY", "3"), ("PATH", "x")]);
    let flags = flags(&["--name=flag", "-name", "last flag"]).unwrap().flags;
    let config: Config = load(Some(file), &variables, &flags).unwrap();
    assert_eq!((config.name.as_str(), config.concurrency, config.manner), ("last flag", 3, Manner::Quick));
    assert_eq!(config.client, Client::default());
}

#[test]
fn flags_are_read_in_every_usual_form() {
    let read = flags(&["config", "--client.timeout=1s", "-enabled", "--max-message-size", "1KiB", "check", "-help"]);
    let flag = |name: &str, value: &str| Flag { name: name.to_owned(), value: value.to_owned() };
    let expected = Arguments {
        flags: vec![flag("client.timeout", "1s"), flag("enabled", "true"), flag("max-message-size", "1KiB")],
        words: vec!["config".to_owned(), "check".to_owned()],
        requests: vec!["help".to_owned()],
    };
    assert_eq!(read, Ok(expected));
}

#[track_caller]
fn refused_flags(arguments: &[&str], expected: &str) {
    let read = flags(arguments).and_then(|read| load::<Config>(None, &Environment::default(), &read.flags));
    assert_eq!(read.expect_err("should have been refused").to_string(), expected);
}

#[test]
fn refused_flags_name_the_nearest() {
    refused_flags(
        &["--client.timeot=1s"],
        "flag --client.timeot: there is no such flag, did you mean `--client.timeout`?",
    );
    refused_flags(
        &["--max_message_size=1"],
        "flag --max_message_size: there is no such flag, did you mean `--max-message-size`?",
    );
    refused_flags(&["--hepl"], "flag --hepl: there is no such flag, did you mean `--help`?");
    refused_flags(&["--zebra"], "flag --zebra: there is no such flag, see --help");
    refused_flags(&["--name"], "flag --name: its value is missing");
    refused_flags(&["--enabled=1"], "flag --enabled: \"1\" is not valid, expected `true` or `false`");
}

#[test]
fn unknown_variables_are_refused_except_those_of_kubernetes() {
    let known = entries(&Config::default());
    let judge = |name: &str| environment(&[(name, "x")]).refuse_unknown(&known).map_err(|error| error.to_string());
    assert_eq!(judge("SKALD_NAME"), Ok(()));
    assert_eq!(judge("HOME"), Ok(()));
    for name in [
        "SKALD_SERVICE_HOST",
        "SKALD_SERVICE_PORT",
        "SKALD_SERVICE_PORT_HTTP_METRICS",
        "SKALD_PORT",
        "SKALD_PORT_9009_TCP",
        "SKALD_STORE_GATEWAY_PORT_9009_TCP_ADDR",
    ] {
        assert_eq!(judge(name), Ok(()), "{name}");
    }
    assert_eq!(
        judge("SKALD_CLIENT_TIMEOUTS"),
        Err("environment variable SKALD_CLIENT_TIMEOUTS: no setting has this name, did you mean \
             `SKALD_CLIENT_TIMEOUT`?"
            .to_owned())
    );
    assert!(judge("SKALD_ZEBRA").is_err());
}

#[test]
fn variables_are_expanded_when_asked_for() {
    let variables = environment(&[("NAME", "x: [y"), ("PEER", "c:3")]);
    let expand = |text: &str, expand_env: bool| {
        load::<Config>(Some(YamlFile { name: "f", text, expand_env }), &variables, &[]).map_err(|e| e.to_string())
    };
    // The value cannot change the structure of the document.
    assert_eq!(expand("name: <${NAME}>", true).unwrap().name, "<x: [y>");
    assert_eq!(expand("name: ${NAME}", false).unwrap().name, "${NAME}");
    assert_eq!(expand("name: ${OTHER:default}", true).unwrap().name, "default");
    assert_eq!(expand("name: ${OTHER:}", true).unwrap().name, "");
    assert_eq!(expand("name: $${NAME}$", true).unwrap().name, "${NAME}$");
    assert_eq!(expand("client: {peers: ['${PEER}', 'd:4']}", true).unwrap().client.peers.len(), 2);
    assert_eq!(
        expand("name: ${OTHER}", true),
        Err("f:1:7: name: environment variable OTHER is not set (`${OTHER:}` allows that)".to_owned())
    );
    assert_eq!(expand("name: ${OTHER", true), Err("f:1:7: name: `${OTHER` lacks its closing brace".to_owned()));
}

#[test]
fn written_yaml_reads_back() {
    let mut config = Config::default();
    for name in ["plain", "", "true", "12", "a: b", "- x", "#", "\"q\"", "null", "~", "line\nline", " x ", "ünï"] {
        config.name = name.to_owned();
        config.client.peers = vec![HostPort::new("::1", 5), HostPort::new("host", 6)];
        config.interval = None;
        for comments in [Comments::Descriptions, Comments::None] {
            let yaml = to_yaml(&config, comments);
            assert_eq!(from_yaml(&yaml), Ok(config.clone()), "{yaml}");
        }
    }
}

#[test]
fn secrets_are_masked_everywhere() {
    let mut config = Config::default();
    assert!(to_yaml(&config, Comments::None).contains("  password: \"\"\n"));
    config.client.password = Secret::new("hunter2");
    for text in [
        to_yaml(&config, Comments::None),
        changed_yaml(&config),
        format!("{config:?}"),
        help(&config),
        reference(&config),
    ] {
        assert!(text.contains("********") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn changed_yaml_holds_only_what_differs() {
    let mut config = Config::default();
    assert_eq!(changed_yaml(&config), "{}\n");
    config.concurrency = 9;
    config.client.timeout = Duration::from_secs(1);
    assert_eq!(changed_yaml(&config), "concurrency: 9\nclient:\n  timeout: 1s\n");
}

#[test]
fn the_reference_describes_every_setting() {
    let page = reference(&Config::default());
    for entry in entries(&Config::default()) {
        assert!(page.contains(&format!("`--{}`, `{}`", entry.flag(), entry.variable())), "{page}");
    }
    assert!(page.contains(
        "- **`concurrency`** (integer, at least 1 and at most 64; default `4`)  \n  \
         `--concurrency`, `SKALD_CONCURRENCY`\n\n  How many at once.\n\n  More is faster.\n"
    ));
    assert!(page.contains("## `client`\n\nIts client.\n\nThe connection to the others.\n"), "{page}");
    assert!(page.contains("  - `careful`: Well, but slowly.\n"));
    let help = help(&Config::default());
    assert!(
        help.contains("  --client.timeout=<duration>\n        Longest wait for an answer [default: 5s]\n"),
        "{help}"
    );
}

#[track_caller]
fn check<T: SettingValue>(text: &str, expected: Option<T>) {
    assert_eq!(T::parse(text).ok(), expected, "{text:?}");
    if let Some(value) = expected {
        assert_eq!(T::parse(&value.show().to_string()), Ok(value));
    }
}

#[test]
fn durations() {
    let ms = |count| Some(Duration::from_millis(count));
    check("100ms", ms(100));
    check("1h30m", ms(5_400_000));
    check("1.5s", ms(1_500));
    check("2d", ms(172_800_000));
    check("1w", ms(604_800_000));
    check("0", ms(0));
    check("1m0s", ms(60_000));
    check("10µs", Some(Duration::from_micros(10)));
    for wrong in ["", "5", "s", "1s1h", "1h1h", "-1s", "1x", "1.s.s", "1 s", "999999999999y", "1.0000000001s", "µ"] {
        check::<Duration>(wrong, None);
    }
    let shown = [(90, "1m30s"), (129_600, "36h"), (86_400, "1d"), (0, "0s"), (7_200, "2h")];
    for (seconds, text) in shown {
        assert_eq!(format_duration(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn byte_sizes() {
    check("100MiB", Some(ByteSize::mib(100)));
    check("1gb", Some(ByteSize::bytes(1_000_000_000)));
    check("4096", Some(ByteSize::kib(4)));
    check("1.5GiB", Some(ByteSize::mib(1536)));
    check("0", Some(ByteSize::bytes(0)));
    check("10 KiB", Some(ByteSize::kib(10)));
    for wrong in ["", "MiB", "1M", "1.5", "-1", "99999999999999999999", "18446744073709551615kB", "1XiB", "1.1.1kB"] {
        check::<ByteSize>(wrong, None);
    }
    assert_eq!(ByteSize::mib(1024).to_string(), "1GiB");
    assert_eq!(ByteSize::bytes(1_500).to_string(), "1500");
}

#[test]
fn host_ports() {
    check("0.0.0.0:9009", Some(HostPort::new("0.0.0.0", 9009)));
    check(":9009", Some(HostPort::new("0.0.0.0", 9009)));
    check("[::1]:80", Some(HostPort::new("::1", 80)));
    check("localhost:0", Some(HostPort::new("localhost", 0)));
    for wrong in ["", "9009", "localhost", "::1:80", "a:70000", "a b:1", "http://x:1"] {
        check::<HostPort>(wrong, None);
    }
}

#[test]
fn suggestions_stay_near() {
    let known = ["server.http_listen_address", "server.grpc_listen_address", "ingester", "data_dir"];
    assert_eq!(nearest("server.htp_listen_address", known), Some("server.http_listen_address"));
    assert_eq!(nearest("grpc_listen_address", known), Some("server.grpc_listen_address"));
    assert_eq!(nearest("ingestor", known), Some("ingester"));
    assert_eq!(nearest("data-dir", known), Some("data_dir"));
    assert_eq!(nearest("x", known), None);
    assert_eq!(nearest("querier", known), None);
}

/// Pieces that come near to a document of settings.
fn near_yaml() -> impl Strategy<Value = String> {
    let pieces = [
        "client", "timeout", "name", "peers", "manner", "interval", ":", ": ", "\n", "  ", "- ", "[", "]", "{", "}",
        "\"", "'", "${", "}", "$", "&a", "*a", "<<", "---\n", "!!str ", "|", ">", "#", "none", "1h", "1MiB", "\t",
        "\u{0}", "ü", ",",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_breaks_the_reading(text in prop_oneof![near_yaml(), any::<String>()]) {
        let file = YamlFile { name: "f", text: &text, expand_env: true };
        if let Ok(config) = load::<Config>(Some(file), &Environment::default(), &[]) {
            // What was taken can be shown and taken again, but for masked secrets.
            if config.client.password.is_empty() {
                prop_assert_eq!(from_yaml(&to_yaml(&config, Comments::None)), Ok(config));
            }
        }
    }

    #[test]
    fn no_text_breaks_a_value(text in "[0-9a-zµ.:\\[\\]-]{0,12}") {
        let _ = (Duration::parse(&text), HostPort::parse(&text), f64::parse(&text));
        if let Ok(size) = ByteSize::parse(&text) {
            prop_assert_eq!(ByteSize::parse(&size.to_string()), Ok(size));
        }
        if let Ok(duration) = Duration::parse(&text) {
            prop_assert_eq!(Duration::parse(&format_duration(duration)), Ok(duration));
        }
    }
}
