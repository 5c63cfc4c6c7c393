//! SHA-256 made over there, where ssh lets us run more than rsync: then only sums cross the line.
//!
//! What runs over there for hours must not outlive us, and nothing tells it that the line is gone: a shell waits beside it for
//! the end of its standard input, which we hold open, and ends it then.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::time::Duration;

use super::shell::LINES_MAX;
use super::{Bounds, Far};

/// How long it may take to find out whether it can be done.
const ASK: Duration = Duration::from_secs(60);

/// The SHA-256 of nothing.
const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Reads a directory, then names in it up to an empty line; then it ends with its input.
const SUMS: &str = r#"unset CDPATH; IFS= read -r dir && cd -- "$dir" || exit 1; while IFS= read -r name && test -n "$name"; do set -- "$@" "$name"; done; exec 3<&0; sha256sum -- "$@" & p=$!; (cat <&3; kill $p) >/dev/null 2>&1 & w=$!; wait $p; s=$?; kill $w; exit $s"#;

impl Far {
    /// Whether SHA-256 can be made over there.
    pub fn makes_sums(&self) -> Result<bool> {
        // Of nothing: what is not there, or may not be run, does not answer so.
        let said = self.sums_of(".", &["/dev/null".to_owned()], Some(ASK))?;
        Ok(said.is_some_and(|(well, said)| well && said.starts_with(OF_NOTHING)))
    }

    /// The SHA-256 of these files over there, by name. One that cannot be read has none. An error if the line breaks.
    pub fn sums(&self, names: &[String]) -> Result<HashMap<String, String>> {
        let dir = self.dir_there("");
        let mut sums = HashMap::new();
        // A name with a line break can't be asked for.
        let sayable = names.iter().filter(|name| !name.contains(char::is_control));
        let mut rest = sayable.map(|name| format!("./{name}")).peekable();
        while rest.peek().is_some() {
            let mut some: Vec<String> = Vec::new();
            let mut bytes = dir.len() + 2;
            while let Some(name) = rest.next_if(|name| some.is_empty() || bytes + name.len() < LINES_MAX) {
                bytes += name.len() + 1;
                some.push(name);
            }
            sums.extend(self.sums_of(&dir, &some, None)?.map(|(_, said)| read(&said)).unwrap_or_default());
        }
        Ok(sums)
    }

    /// Whether all went well, and what `sha256sum` printed of these names in a directory; nothing where it can't be asked.
    fn sums_of(&self, dir: &str, names: &[String], timeout: Option<Duration>) -> Result<Option<(bool, String)>> {
        let lines = [&[dir.to_owned()], names, &[String::new()]].concat();
        let ran =
            self.over_there(SUMS, &lines, timeout, &Bounds::default()).context("cannot run sha256sum over there")?;
        let Some(ran) = ran else { return Ok(None) };
        // ssh's own failures.
        if ran.status.code() == Some(255) {
            return Err(ran.error()).context("cannot run sha256sum over there");
        }
        Ok(Some((ran.status.success(), String::from_utf8_lossy(&ran.stdout).into_owned())))
    }
}

/// What `sha256sum ./a ./b` prints. A line that begins with a backslash has a name with escapes.
pub fn read(said: &str) -> HashMap<String, String> {
    let mut sums = HashMap::new();
    for line in said.lines() {
        let (escaped, line) = line.strip_prefix('\\').map_or((false, line), |rest| (true, rest));
        let Some((sum, name)) = line.split_once(' ') else { continue };
        // A space, or an asterisk where it was read as binary.
        let Some(name) = name.strip_prefix([' ', '*']).and_then(|name| name.strip_prefix("./")) else { continue };
        if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        let name = if escaped { unescape(name) } else { name.to_owned() };
        sums.insert(name, sum.to_ascii_lowercase());
    }
    sums
}

fn unescape(name: &str) -> String {
    let (mut out, mut chars) = (String::new(), name.chars());
    while let Some(c) = chars.next() {
        let next = if c == '\\' { chars.next() } else { Some(c) };
        out.push(match next {
            Some('n') if c == '\\' => '\n',
            Some('r') if c == '\\' => '\r',
            other => other.unwrap_or(c),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sha256sum_prints() {
        let sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let said = format!(
            "{sum}  ./web/a b.raw\n\\{sum}  ./web/back\\\\slash.raw\n{sum} *./web/binary\nsha256sum: x: No such file\n{sum}\n"
        );
        let sums = read(&said);
        assert_eq!(sums.len(), 3, "{sums:?}");
        for name in ["web/a b.raw", "web/back\\slash.raw", "web/binary"] {
            assert_eq!(sums.get(name).map(String::as_str), Some(sum), "{name}");
        }
        assert!(super::super::shell::is_one_word(SUMS));
    }
}
