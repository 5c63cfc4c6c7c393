//! SHA-256 made over there, where ssh lets us run more than rsync: then only sums cross the line.
//!
//! What runs over there for hours must not outlive us, and nothing tells it that the line is gone: a shell waits beside it for
//! the end of its standard input, which we hold open, and ends it then.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use super::{Far, Url};
use crate::command::Program;
use crate::meter::Wire;

/// How long it may take to find out whether it can be done.
const ASK: Duration = Duration::from_secs(60);

/// The SHA-256 of nothing.
const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// No command over there is longer, in bytes: Linux takes 128 KiB in one word.
const LONGEST: usize = 60_000;

impl Far {
    /// Whether SHA-256 can be made over there.
    pub fn makes_sums(&self) -> Result<bool> {
        if !matches!(self.url, Url::Ssh { .. }) || self.restricted == Some(true) {
            return Ok(false);
        }
        // Of nothing: what is not there, or may not be run, does not answer so.
        let (well, said) = self.over_there(&script(".", &["/dev/null"]), Some(ASK))?;
        Ok(well && said.starts_with(OF_NOTHING))
    }

    /// The SHA-256 of these files over there, by name. One that cannot be read has none. An error if the line breaks.
    pub fn sums(&self, names: &[String]) -> Result<HashMap<String, String>> {
        let Url::Ssh { path, .. } = &self.url else { return Ok(HashMap::new()) };
        // `~/` is where a command begins, and a shell would not see it in quotes.
        let dir = path.strip_prefix("~/").map_or(path.as_str(), |below| if below.is_empty() { "." } else { below });
        let mut sums = HashMap::new();
        let mut rest = names.iter().map(|name| format!("./{name}")).peekable();
        while rest.peek().is_some() {
            let mut some: Vec<String> = Vec::new();
            let mut bytes = 0;
            while let Some(name) = rest.next_if(|name| some.is_empty() || bytes + quoted(name) < LONGEST) {
                bytes += quoted(&name);
                some.push(name);
            }
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            sums.extend(read(&self.over_there(&script(dir, &some), None)?.1));
        }
        Ok(sums)
    }

    /// Has the shell over there run a line: whether that ended well, and what it printed.
    fn over_there(&self, line: &str, timeout: Option<Duration>) -> Result<(bool, String)> {
        let Url::Ssh { host, .. } = &self.url else { return Ok((false, String::new())) };
        let (input, _held) = std::io::pipe().context("cannot make a pipe")?;
        let mut program = Program::new(&self.ssh[0])?.args(self.ssh[1..].iter().cloned());
        program = program.args(["--", host.as_str(), line]).stdin(Stdio::from(input)).guarded().heeding();
        if let Some(limit) = timeout {
            program = program.timeout(limit);
        }
        let finished = program.run().context("cannot run sha256sum over there")?;
        let came = finished.stdout.len() + finished.stderr.len();
        self.spent(Wire { out: line.len() as u64, into: came as u64 });
        // ssh's own failures.
        if finished.status.code() == Some(255) {
            return Err(finished.error()).context("cannot run sha256sum over there");
        }
        Ok((finished.status.success(), String::from_utf8_lossy(&finished.stdout).into_owned()))
    }
}

/// What is run over there, whatever shell it is that reads this.
fn script(dir: &str, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote(name)).collect();
    let sums = format!("sha256sum -- {} & p=$!", names.join(" "));
    let watch = "(cat <&3; kill $p) >/dev/null 2>&1 & w=$!";
    let script =
        format!("cd -- {} && exec 3<&0 && {{ {sums}; {watch}; wait $p; s=$?; kill $w; exit $s; }}", quote(dir));
    format!("sh -c {}", quote(&script))
}

/// How many bytes of a script a word takes, at most.
fn quoted(word: &str) -> usize {
    // Quoted twice.
    quote(&quote(word)).len() + 1
}

/// A word as every shell reads it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What `sha256sum ./a ./b` prints. A line that begins with a backslash has a name with escapes.
fn read(said: &str) -> HashMap<String, String> {
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
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
