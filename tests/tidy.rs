//! The repository's own rules, as far as neither compiler, formatter nor clippy knows them.
#![expect(clippy::disallowed_methods, reason = "reads the repository itself")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file without its tests; longer files hide a second concept.
const MAX_LINES: usize = 900;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every text file of the repository with its path relative to the root, ascending.
fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let (name, kind) = (entry.file_name().into_string().unwrap(), entry.file_type().unwrap());
            let path = directory.join(&name);
            if kind.is_dir() && !["target", ".git", "data", "corpus", "artifacts"].contains(&name.as_str()) {
                directories.push(path);
            } else if kind.is_file()
                && name != ".git" // a file in a linked work tree
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                files.push((path.to_str().unwrap().to_owned(), text));
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "{files:?}");
    files
}

fn sources() -> Vec<(String, String)> {
    files().into_iter().filter(|(path, _)| path.ends_with(".rs")).collect()
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Places (`path:line`) of lines that contain one of `words`. This file names them all.
fn lines_with(files: &[(String, String)], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path != "tests/tidy.rs") {
        for (line, text) in text.lines().enumerate() {
            if words.iter().any(|word| text.contains(word)) {
                found.push(format!("{path}:{}: {}", line + 1, text.trim()));
            }
        }
    }
    found
}

#[test]
fn the_reference_page_is_fresh() {
    let fresh = read("REFERENCE.md") == skald::cli::reference_page();
    assert!(fresh, "REFERENCE.md is stale: cargo run -- config print-reference > REFERENCE.md");
}

#[test]
fn nothing_is_left_for_later() {
    none("unfinished", lines_with(&sources(), &["TODO", "FIXME", "XXX", "HACK", "unimplemented!(", "todo!("]));
}

#[test]
fn lints_are_excepted_with_a_reason() {
    // `allow` rather than `expect` is for generated code and macros, where the lint may also stay silent.
    let allowed = lines_with(&sources(), &["#[allow(", "#![allow("]);
    let unexplained = allowed.into_iter().filter(|line| !line.contains("reason = ") || line.contains("dead_code"));
    none("exceptions without a reason, or for code nobody uses", unexplained.collect());
}

#[test]
fn nothing_belongs_to_one_machine() {
    let files: Vec<_> = files().into_iter().filter(|(path, _)| !path.ends_with("Cargo.lock")).collect();
    none("paths of one machine", lines_with(&files, &["/work/", "/root/", "/home/"]));
}

#[test]
fn files_hold_one_concept() {
    let long = sources().into_iter().filter(|(path, _)| !path.contains("tests")).filter_map(|(path, text)| {
        let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        (lines > MAX_LINES).then(|| format!("{path}: {lines} lines"))
    });
    none("files too long", long.collect());
}

#[test]
fn files_say_what_they_are() {
    let is_test = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
    let silent = sources().into_iter().filter(|(path, text)| !is_test(path) && !text.starts_with("//!"));
    none("files that do not begin with //!", silent.map(|(path, _)| path).collect());
}

#[test]
fn files_are_named_for_their_concept() {
    let vague = ["utils.rs", "util.rs", "helpers.rs", "common.rs", "misc.rs", "models.rs"];
    let vague = sources().into_iter().filter(|(path, _)| vague.iter().any(|name| path.ends_with(&format!("/{name}"))));
    none("vague names", vague.map(|(path, _)| path).collect());
}

/// The names (before `=` or `.`) of the lines in a section of a Cargo.toml.
fn manifest_section(manifest: &str, section: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != format!("[{section}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let names = lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    names.map(|line| line.split(['=', '.', ' ']).next().unwrap_or_default().to_owned()).collect()
}

/// The manifest of every member of the workspace by its name.
fn manifests() -> BTreeMap<&'static str, String> {
    let members = ["model", "tsdb", "promql", "ring", "proto"];
    let members = members.into_iter().map(|member| (member, read(&format!("{member}/Cargo.toml"))));
    members.chain([("skald", read("Cargo.toml"))]).collect()
}

#[test]
fn every_dependency_is_used_and_explained() {
    let manifests = manifests();
    let uses = |manifest: &String, dependency: &String| {
        ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .any(|section| manifest_section(manifest, section).contains(dependency))
    };
    let declared = manifest_section(&manifests["skald"], "workspace.dependencies");
    assert!(declared.len() > 20, "{declared:?}");
    let unused = declared.iter().filter(|name| !manifests.values().any(|manifest| uses(manifest, name)));
    none("dependencies nobody uses", unused.cloned().collect());

    // A member's dependency is used when its sources name it.
    let sources = sources();
    let mut unnamed = Vec::new();
    for (member, manifest) in &manifests {
        let folders: &[&str] =
            if *member == "skald" { &["src/", "tests/", "benches/", "examples/"] } else { &[member] };
        for section in ["dependencies", "dev-dependencies"] {
            for dependency in manifest_section(manifest, section) {
                let name = dependency.replace('-', "_");
                let named = sources
                    .iter()
                    .any(|(path, text)| folders.iter().any(|folder| path.starts_with(folder)) && text.contains(&name));
                // Enabled for its features: prost and tonic-prost are named by generated code, rustls by its crypto.
                let generated = ["prost", "tonic-prost"].contains(&dependency.as_str()) && *member == "proto";
                if !named && !generated {
                    unnamed.push(format!("{member}: {dependency}"));
                }
            }
        }
    }
    none("dependencies no source names", unnamed);

    let Ok(architecture) = fs::read_to_string(root().join("ARCHITECTURE.md")) else {
        println!("skipped: there is no ARCHITECTURE.md");
        return;
    };
    let unexplained =
        declared.iter().filter(|name| !name.starts_with("skald-") && !architecture.contains(&format!("`{name}`")));
    none("dependencies ARCHITECTURE.md does not explain", unexplained.cloned().collect());
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for (member, manifest) in manifests() {
        let allowed: &[&str] = match member {
            "skald" => continue,
            "model" => &[],
            _ => &["skald-model"],
        };
        let ours = manifest_section(&manifest, "dependencies").into_iter().filter(|name| name.starts_with("skald-"));
        wrong.extend(ours.filter(|name| !allowed.contains(&name.as_str())).map(|name| format!("{member} → {name}")));
    }
    none("dependencies against the direction", wrong);
}

#[test]
fn the_readme_holds_what_it_promises() {
    use std::os::unix::fs::PermissionsExt;
    let readme = read("README.md");
    for command in ["\ncargo run --release\n", "\ntests/run\n"] {
        assert!(readme.contains(command), "{command}");
    }
    for script in ["tests/run", ".ci/run"] {
        let mode = fs::metadata(root().join(script)).unwrap().permissions().mode();
        assert!(mode & 0o111 != 0, "{script} is not executable");
    }
    assert!(read(".ci/run").contains("tests/run"));
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in files().into_iter().filter(|(path, _)| path.ends_with(".md")) {
        let base = root().join(&path);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !link.contains("://") && !base.with_file_name(target).exists() {
                broken.push(format!("{path}: {link}"));
            }
        }
    }
    none("links that lead nowhere", broken);
}
