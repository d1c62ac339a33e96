//! Rules over the text of the repository's files.

use super::{Check, files::File};

/// Lines of a file beyond which it deserves a look.
const LONG: usize = 400;

/// The only rooms of `unsafe`. Tests may use it too, where they say why.
const UNSAFE_ROOMS: [&str; 2] = ["daemon/linux/", "ebpf/programs/"];
const UNSAFE_SAYING_WHY: [&str; 1] = ["tests/"];

/// Ends a line that a rule would find and that is right as it is.
const EXCUSED: &str = "lint: allow";

/// This file names what it looks for; cargo's lock file names the registry by design.
const EXEMPT: [&str; 2] = ["xtask/src/lint/text.rs", "Cargo.lock"];

/// Folders, at the root, of the machines that this is written on; they are nobody else's.
const MACHINE_FOLDERS: [&str; 4] = ["root", "home", "work", "Users"];
/// The same, in any folder.
const CARGO_REGISTRY: &str = ".cargo/registry";

/// Registries are reached by their clients, as each machine has them set up.
const REGISTRY_HOSTS: [&str; 9] = [
    "crates.io/",
    "index.crates.io",
    "static.rust-lang.org",
    "proxy.golang.org",
    "registry.npmjs.org",
    "pypi.org",
    "deb.debian.org",
    "security.debian.org",
    "repo.maven.apache.org",
];

/// Beginnings of secrets.
const SECRETS: [&str; 6] = ["AKIA", "ghp_", "github_pat_", "glpat-", "xoxb-", "eyJhbGciOi"];

/// All rules of this kind.
pub(super) fn checks(files: &[File]) -> Vec<Check> {
    let over = |rule: fn(&File) -> Vec<String>| files.iter().flat_map(rule).collect::<Vec<_>>();
    let mut length = Check::new("file-length", Vec::new());
    length.warnings = over(long);
    vec![
        Check::new("unsafe", over(unsafe_code)),
        Check::new("machine-paths", over(machine_paths)),
        Check::new("secrets", over(secrets)),
        length,
    ]
}

fn long(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    let is_code = file.is_rust() || file.path.ends_with(".sh") || file.path.ends_with(".py");
    if is_code && lines > LONG { vec![format!("{} has {lines} lines", file.path)] } else { Vec::new() }
}

/// `unsafe` outside of its rooms, or in a test that does not say why.
fn unsafe_code(file: &File) -> Vec<String> {
    /// Lines above that may hold the reason.
    const REACH: usize = 6;
    if !file.is_rust() || UNSAFE_ROOMS.iter().any(|room| file.path.starts_with(room)) {
        return Vec::new();
    }
    let may = UNSAFE_SAYING_WHY.iter().any(|room| file.path.starts_with(room));
    let lines: Vec<&str> = file.text.lines().collect();
    let mut findings = Vec::new();
    for index in (0..lines.len()).filter(|index| has_word(code_of(lines[*index]), "unsafe")) {
        let reasons = &lines[index.saturating_sub(REACH)..=index];
        if !may {
            findings.push(format!(
                "{}:{}: only {} hold `unsafe`",
                file.path,
                index + 1,
                UNSAFE_ROOMS.join(" and ")
            ));
        } else if !reasons.iter().any(|l| l.contains("SAFETY:") || l.contains(EXCUSED)) {
            findings.push(format!(
                "{}:{}: `unsafe` without a `// SAFETY:` above that says why",
                file.path,
                index + 1
            ));
        }
    }
    findings
}

/// A line up to its comment, and nothing of one that is within a string as far as a line shows it.
fn code_of(line: &str) -> &str {
    let comment = line.find("//").unwrap_or(line.len());
    let string = line.find('"').unwrap_or(line.len());
    &line[..comment.min(string)]
}

/// Whether `word` stands in the text, not as a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

/// Paths of one machine, and registries by their hosts.
fn machine_paths(file: &File) -> Vec<String> {
    if EXEMPT.contains(&file.path.as_str()) || file.path.ends_with("/Cargo.lock") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let paths = MACHINE_FOLDERS.map(|folder| format!("/{folder}/"));
    let paths: Vec<&str> = paths.iter().map(String::as_str).chain([CARGO_REGISTRY]).collect();
    for (number, line) in file.lines().filter(|(_, line)| !line.contains(EXCUSED)) {
        for path in paths.iter().filter(|path| begins_a_path(line, path)) {
            findings.push(format!("{}:{number}: {path} is a path of one machine", file.path));
        }
        for host in REGISTRY_HOSTS.iter().filter(|host| line.contains(*host)) {
            findings.push(format!("{}:{number}: {host} is a registry's host", file.path));
        }
    }
    findings
}

/// Whether `path` is there as the beginning of a path, and not in the midst of another.
fn begins_a_path(line: &str, path: &str) -> bool {
    let is_before = |c: char| c.is_alphanumeric() || "_.-$}*/~".contains(c);
    line.match_indices(path).any(|(at, _)| path.starts_with('.') || !line[..at].ends_with(is_before))
}

/// What looks like somebody's secret.
fn secrets(file: &File) -> Vec<String> {
    if EXEMPT.contains(&file.path.as_str()) {
        return Vec::new();
    }
    // A store's tests hold whole files with keys of nobody; they have a folder of their own.
    let is_test = file.path.starts_with("tests/") || file.path.contains("/tests/");
    let mut findings = Vec::new();
    for (number, line) in file.lines().filter(|(_, line)| !line.contains(EXCUSED)) {
        let is_token = |start: &&str| {
            let tokens = line.split(|c: char| !c.is_ascii_alphanumeric() && !"_-".contains(c));
            tokens.into_iter().any(|token| token.starts_with(*start) && token.len() >= start.len() + 16)
        };
        let is_pem = line.contains("-----BEGIN") && line.contains("PRIVATE KEY-----");
        if is_pem || SECRETS.iter().any(is_token) || (!is_test && is_wireguard_key(line)) {
            findings.push(format!(
                "{}:{number}: looks like a secret; a test's own is excused by `{EXCUSED}`",
                file.path
            ));
        }
    }
    findings
}

/// A private or preshared key of WireGuard's, given to something that is named so.
fn is_wireguard_key(line: &str) -> bool {
    let lower = line.to_ascii_lowercase().replace(['_', '-', ' '], "");
    let named = lower.contains("privatekey") || lower.contains("presharedkey");
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    named
        && line
            .split(|c: char| !is_base64(c))
            .any(|word| word.trim_start_matches('=').len() == 44 && word.ends_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn unsafe_is_found_outside_of_its_rooms() {
        let code = "fn f() {\n    unsafe { g() }\n}";
        assert_eq!(unsafe_code(&file("daemon/core/src/a.rs", code)).len(), 1);
        assert_eq!(unsafe_code(&file("xtask/src/a.rs", code)).len(), 1);
        assert_eq!(unsafe_code(&file("daemon/linux/src/a.rs", code)), [""; 0]);
    }

    #[test]
    fn tests_say_why() {
        assert_eq!(unsafe_code(&file("tests/src/a.rs", "unsafe { g() }")).len(), 1);
        assert_eq!(unsafe_code(&file("tests/src/a.rs", "// SAFETY: g is fine.\nunsafe { g() }")), [""; 0]);
    }

    #[test]
    fn the_word_is_not_the_deed() {
        let code = "// no unsafe here\n#![deny(unsafe_code)]\nlet s = \"unsafe { }\";";
        assert_eq!(unsafe_code(&file("daemon/core/src/a.rs", code)), [""; 0]);
    }

    #[test]
    fn machine_paths_are_found() {
        let found = |line: &str| machine_paths(&file("a.md", line));
        let [root, home, work, _] = MACHINE_FOLDERS;
        for line in [format!("cd /{root}/x"), format!("\"/{home}/me/x\""), format!("see /{work}/shared/A.md")]
        {
            assert_eq!(found(&line).len(), 1, "{line}");
        }
        assert_eq!(found("~/.cargo/registry/src").len(), 1);
        for line in [format!("a/{work}/b"), format!("$HOME/{home}/x"), format!("/{work}space/")] {
            assert_eq!(found(&line), [""; 0], "{line}");
        }
        assert_eq!(found("root:x:0:0:root:/root:/bin/bash"), [""; 0]);
    }

    #[test]
    fn registry_hosts_are_found() {
        assert_eq!(machine_paths(&file("a.sh", "curl https://proxy.golang.org/x")).len(), 1);
        assert_eq!(machine_paths(&file("Cargo.lock", "index.crates.io")), [""; 0]);
    }

    #[test]
    fn secrets_are_found() {
        for line in [
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "token = \"ghp_0123456789abcdefghij\"",
            "PrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ] {
            assert_eq!(secrets(&file("a", line)).len(), 1, "{line}");
        }
        for line in [
            "PublicKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "private_key: PrivateKey,",
            "let k = private_key(\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"); // lint: allow",
        ] {
            assert_eq!(secrets(&file("a", line)), [""; 0], "{line}");
        }
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(long(&file("a.rs", &"x\n".repeat(LONG + 1))).len(), 1);
        assert_eq!(long(&file("a.rs", &"x\n".repeat(LONG))), [""; 0]);
    }
}
