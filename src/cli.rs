//! The command line: which command, and the settings it runs with.
//!
//! ```text
//! skald [flags]                    runs Skald
//! skald config print-defaults      every setting with its default and description, as YAML
//! skald config check [flags]       whether the settings are fine
//! skald config print-reference     the reference page
//! skald tsdb ACTION [LOCATION]     looks at blocks, checks and repairs them
//! ```

use std::path::{Path, PathBuf};

use skald_tsdb::disk::RealDisk;

use crate::config::Config;
use crate::settings::{
    Arguments, Comments, Environment, LoadError, YamlFile, entries, help, load, nearest, read_flags, reference,
    settings, to_yaml,
};
use crate::{runtime_config, tsdb_tool};

settings! {
    /// Where the settings come from.
    struct Launch {
        /// Which file is read, and how. These two are given by flag or variable: they cannot stand in the file itself.
        pub config: LaunchConfig,
    }
}

settings! {
    struct LaunchConfig {
        /// YAML file of settings. Without one, defaults, environment and flags decide.
        pub file: Option<PathBuf> = None,
        /// Whether `${NAME}` and `${NAME:default}` in the values of the file are replaced by environment variables; `$${`
        /// stands for `${`. A variable that is not set and has no default is an error.
        pub expand_env: bool = false,
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Run with these settings.
    Run(Box<Config>),
    /// Print this and end.
    Print(String),
    /// Look at blocks.
    Tsdb(Box<tsdb_tool::Call>),
}

/// Why nothing can be done.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// There is no such command.
    #[error("unknown command `{command}`{suggestion}; see skald --help")]
    UnknownCommand {
        /// What was asked for.
        command: String,
        /// The nearest known one, if near.
        suggestion: String,
    },
    /// A setting is wrong.
    #[error(transparent)]
    Settings(#[from] LoadError),
    /// The file of settings cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of runtime settings cannot be used.
    #[error("{0}")]
    RuntimeConfig(String),
}

const COMMANDS: [&str; 3] = ["config print-defaults", "config check", "config print-reference"];

/// Reads a command line (without the program's name).
pub fn command(arguments: &[String], environment: &Environment) -> Result<Command, CliError> {
    if let Some((first, rest)) = arguments.split_first()
        && first == "tsdb"
    {
        return tsdb_command(rest, environment);
    }
    let mut known = entries(&Launch::default());
    known.extend(entries(&Config::default()));
    let arguments = read_flags(arguments, &known, &["help", "h", "version"])?;
    if let Some(request) = arguments.requests.first() {
        return Ok(Command::Print(if request == "version" { version() } else { help_text() }));
    }
    match arguments.words.join(" ").as_str() {
        "" => {
            environment.refuse_unknown(&known)?;
            Ok(Command::Run(Box::new(load_config(&arguments, environment)?)))
        }
        "config check" => {
            environment.refuse_unknown(&known)?;
            let config = load_config(&arguments, environment)?;
            runtime_config::check(&config.runtime_config, &config.limits, &RealDisk)
                .map_err(CliError::RuntimeConfig)?;
            Ok(Command::Print("the settings are fine\n".to_owned()))
        }
        "config print-defaults" => Ok(Command::Print(to_yaml(&Config::default(), Comments::Descriptions))),
        "config print-reference" => Ok(Command::Print(reference_page())),
        unknown => {
            let suggestion = match nearest(unknown, COMMANDS) {
                Some(near) => format!(", did you mean `{near}`?"),
                None => String::new(),
            };
            Err(CliError::UnknownCommand { command: unknown.to_owned(), suggestion })
        }
    }
}

/// `skald tsdb …`: takes the binary's settings, which say where the storage is, and options of its own.
fn tsdb_command(arguments: &[String], environment: &Environment) -> Result<Command, CliError> {
    let mut known = entries(&Launch::default());
    known.extend(entries(&Config::default()));
    known.extend(entries(&tsdb_tool::Options::default()));
    let arguments = read_flags(arguments, &known, &["help", "h"])?;
    let Some((action, rest)) = arguments.words.split_first().filter(|_| arguments.requests.is_empty()) else {
        return Ok(Command::Print(tsdb_help()));
    };
    let unknown = |word: &str, known: &mut dyn Iterator<Item = &'static str>| CliError::UnknownCommand {
        command: format!("tsdb {word}"),
        suggestion: nearest(word, known).map_or(String::new(), |near| format!(", did you mean `tsdb {near}`?")),
    };
    let named = tsdb_tool::Action::ALL.into_iter().find(|(name, _)| name == action);
    let Some((_, action)) = named else {
        return Err(unknown(action, &mut tsdb_tool::Action::ALL.iter().map(|(name, _)| *name)));
    };
    if let Some(word) = rest.get(1) {
        return Err(unknown(word, &mut std::iter::empty()));
    }
    // Flags only: what one call does is not to hang on a variable set elsewhere.
    let options = load(None, &Environment::new([]), &arguments.flags)?;
    let config = load_config(&arguments, environment)?;
    Ok(Command::Tsdb(Box::new(tsdb_tool::Call { action, location: rest.first().cloned(), options, config })))
}

fn tsdb_help() -> String {
    format!(
        "Looks at blocks, checks them, and saves what is readable of damaged ones.\n\n\
         Usage:\n  \
         skald tsdb list    [LOCATION] [flags]    name the blocks and what they hold\n  \
         skald tsdb analyze [LOCATION] [flags]    count what bytes and series are spent on\n  \
         skald tsdb dump    [LOCATION] [flags]    print samples\n  \
         skald tsdb verify  [LOCATION] [flags]    check every checksum, every sample, and whether the parts agree\n  \
         skald tsdb repair  [LOCATION] [flags]    show, or with --write save, what is readable of damaged blocks\n\n\
         LOCATION is a block, a directory of blocks or of tenants (such as data/blocks or data/tsdb), or a URL:\n\
         s3://bucket/prefix, gs://bucket/prefix, azure://account/container/prefix. Without one, it is the storage of the\n\
         settings. Credentials and endpoints come from the settings too (--blocks-storage.…, --config.file; see\n\
         skald --help).\n\n\
         Ends with 1 when a block is damaged or none was found.\n\n\
         flags:\n{}\n",
        help(&tsdb_tool::Options::default()).trim_start_matches("\nGeneral:\n"),
    )
}

fn load_config(arguments: &Arguments, environment: &Environment) -> Result<Config, CliError> {
    let launch: Launch = load(None, environment, &arguments.flags)?;
    let Some(path) = launch.config.file else {
        return Ok(load(None, environment, &arguments.flags)?);
    };
    let text = read_file(&path).map_err(|source| CliError::File { path: path.clone(), source })?;
    let file = YamlFile { name: &path.display().to_string(), text: &text, expand_env: launch.config.expand_env };
    Ok(load(Some(file), environment, &arguments.flags)?)
}

#[expect(clippy::disallowed_methods, reason = "read before anything runs; it may also be a pipe")]
fn read_file(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

fn version() -> String {
    format!("skald {}\n", env!("CARGO_PKG_VERSION"))
}

fn help_text() -> String {
    format!(
        "Skald {}: a long-term store for Prometheus metrics.\n\n\
         Usage:\n  \
         skald [flags]                    run\n  \
         skald config print-defaults      print every setting with its default as YAML\n  \
         skald config check [flags]       check the settings and end\n  \
         skald config print-reference     print the reference of all settings as Markdown\n  \
         skald tsdb ACTION [LOCATION]     list, analyze, dump, verify or repair blocks; see skald tsdb --help\n  \
         skald --help | --version\n\n\
         A setting comes from its default, the YAML file, the environment (SKALD_DATA_DIR for data_dir)\n\
         or a flag (--data-dir); each overrides those before it.\n\n\
         config:\n{}{}",
        env!("CARGO_PKG_VERSION"),
        help(&Launch::default()).trim_start_matches("\nconfig:\n"),
        help(&Config::default()),
    )
}

/// The page `REFERENCE.md`.
pub fn reference_page() -> String {
    let launch = reference(&Launch::default());
    let launch = launch.split_once("## `config`\n").map_or("", |(_, launch)| launch);
    format!(
        "<!-- Generated by `cargo run -- config print-reference`; a test fails when it is stale. -->\n\
         # Settings\n\n\
         Every setting has one path, such as `server.http_listen_address`, and three ways to be set. Each overrides the\n\
         ones before it:\n\n\
         1. its default;\n\
         2. the YAML file named by `--config.file`: the path's parts are nested keys;\n\
         3. an environment variable: `SKALD_SERVER_HTTP_LISTEN_ADDRESS`;\n\
         4. a flag: `--server.http-listen-address=127.0.0.1:9009` (or with one dash; the last of several counts).\n\n\
         Unknown keys, variables and flags, keys set twice, and values that are not understood are errors. Durations are\n\
         written `100ms`, `1h30m`, `7d`; sizes `100MiB`, `1GB` or as a number of bytes; lists in flags and variables with\n\
         commas. `none` turns off what can be off. Variables that Kubernetes sets for a service called `skald` are\n\
         ignored.\n\n\
         `skald config print-defaults` prints a file with everything on this page, `skald config check` checks one, and\n\
         a running process shows its settings at `/config` (`?mode=diff`: only what differs from the defaults), with\n\
         secrets masked.\n\n\
         ## Where settings come from\n{launch}{}\n\
         # `skald tsdb`\n\n```text\n{}\n```\n",
        reference(&Config::default()),
        tsdb_help().trim_end(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::HostPort;

    fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Command, String> {
        let arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        command(&arguments, &Environment::new(variables)).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Config {
        match run(arguments, variables) {
            Ok(Command::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn printed(arguments: &[&str]) -> String {
        match run(arguments, &[]) {
            Ok(Command::Print(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a file as a user writes it")]
    fn file(text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skald.yaml");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        (dir, path)
    }

    #[test]
    fn nothing_given_runs_with_the_defaults() {
        assert_eq!(config(&[], &[]), Config::default());
    }

    #[test]
    fn file_then_environment_then_flags() {
        let (_dir, path) = file(
            "data_dir: from-file\nmultitenancy_enabled: true\nserver:\n  http_listen_address: file:1\n  \
             grpc_listen_address: file:2\n",
        );
        let config = config(
            &[&format!("-config.file={path}"), "--server.http-listen-address=flag:1"],
            &[("SKALD_SERVER_HTTP_LISTEN_ADDRESS", "env:1"), ("SKALD_SERVER_GRPC_LISTEN_ADDRESS", "env:2")],
        );
        assert_eq!(config.data_dir, PathBuf::from("from-file"));
        assert!(config.multitenancy_enabled);
        assert_eq!(config.server.http_listen_address, HostPort::new("flag", 1));
        assert_eq!(config.server.grpc_listen_address, HostPort::new("env", 2));
    }

    #[test]
    fn the_file_can_be_named_and_expanded_by_variables() {
        let (_dir, path) = file("data_dir: /${WHERE}\n");
        let variables = [("SKALD_CONFIG_FILE", path.as_str()), ("SKALD_CONFIG_EXPAND_ENV", "true"), ("WHERE", "x")];
        assert_eq!(config(&[], &variables).data_dir, PathBuf::from("/x"));
    }

    #[track_caller]
    fn refused(arguments: &[&str], variables: &[(&str, &str)], expected: &str) {
        let error = run(arguments, variables).expect_err("should have been refused");
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn wrong_input_is_refused_with_the_way_out() {
        refused(&["confg", "check"], &[], "unknown command `confg check`, did you mean `config check`?");
        refused(&["--datadir=x"], &[], "flag --datadir: there is no such flag, did you mean `--data-dir`?");
        refused(&[], &[("SKALD_DATADIR", "x")], "did you mean `SKALD_DATA_DIR`?");
        refused(&["--target=ingestor"], &[], "did you mean `ingester`?");
        refused(&["--config.file=/nowhere/skald.yaml"], &[], "cannot read the configuration file /nowhere/skald.yaml");
        let (_dir, path) = file("server:\n  htp_listen_address: a:1\n");
        let place = format!(
            "{path}:2:3: unknown setting `server.htp_listen_address`, did you mean `server.http_listen_address`?"
        );
        refused(&["config", "check", "--config.file", &path], &[], &place);
        let (_dir, path) = file("overrides: {a: {ingestion_rte: 1}}");
        let unknown = "unknown setting `overrides.a.ingestion_rte`, did you mean `overrides.a.ingestion_rate`?";
        refused(&["config", "check", "--runtime-config.file", &path], &[], unknown);
        let (_dir, path) = file("config:\n  file: x\n");
        refused(&["--config.file", &path], &[], "unknown setting `config`");
    }

    #[test]
    fn tools_have_options_beside_the_settings() {
        let flags = ["tsdb", "repair", "data/tsdb", "--write", "--data-dir=d", "--block=01M7XJD02WQ18DRRGGBN1G1W9J"];
        let Ok(Command::Tsdb(call)) = run(&flags, &[("SKALD_FORMAT", "json")]) else { panic!() };
        assert_eq!((call.action, call.location.as_deref()), (tsdb_tool::Action::Repair, Some("data/tsdb")));
        assert_eq!((call.options.write, call.options.format), (true, tsdb_tool::Format::Human));
        assert_eq!(call.config.data_dir, PathBuf::from("d"));
        assert!(printed(&["tsdb"]).contains("skald tsdb analyze"));
        refused(&["tsdb", "verfy"], &[], "unknown command `tsdb verfy`, did you mean `tsdb verify`?");
        refused(&["tsdb", "list", "a", "b"], &[], "unknown command `tsdb b`");
        refused(&["--write"], &[], "there is no such flag");
    }

    #[test]
    fn printed_defaults_are_the_defaults() {
        let yaml = printed(&["config", "print-defaults"]);
        let (_dir, path) = file(&yaml);
        assert_eq!(config(&["--config.file", &path], &[]), Config::default());
        assert_eq!(printed(&["config", "check", "--config.file", &path]), "the settings are fine\n");
        for entry in entries(&Config::default()) {
            let first_line = entry.docs.lines().next().unwrap_or_default();
            assert!(yaml.contains(&format!("#{first_line}")), "{} in {yaml}", entry.path);
        }
    }

    #[test]
    fn help_and_reference_name_every_setting() {
        let help = printed(&["--help"]);
        let page = printed(&["config", "print-reference"]);
        for entry in entries(&Launch::default()).into_iter().chain(entries(&Config::default())) {
            assert_eq!(help.matches(&format!("  --{}=<", entry.flag())).count(), 1, "{} in {help}", entry.path);
            assert_eq!(page.matches(&format!("`{}`\n", entry.variable())).count(), 1, "{} in {page}", entry.path);
        }
        assert_eq!(printed(&["-h"]), help);
        assert_eq!(printed(&["--version"]), format!("skald {}\n", env!("CARGO_PKG_VERSION")));
    }
}
