//! What a driver's program says: lines of JSON, each an object of few known fields. Pure.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::jsonl::LINE_MAX;
use bak_common::name::{Stem, printable};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::driver::{Decision, Verdict};

/// As many files, or targets, may be named.
pub const NAMES_MAX: usize = 1000;

/// The longest reason, in characters.
const WHY_MAX: usize = 300;

/// Output cut into lines, as it comes.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub fn feed(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut parts = bytes.split(|byte| *byte == b'\n');
        // There is always a last part; it has no newline yet.
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            self.rest.extend_from_slice(part);
            let line = std::mem::take(&mut self.rest);
            if !line.iter().all(u8::is_ascii_whitespace) {
                each(&line)?;
            }
        }
        self.rest.extend_from_slice(last);
        ensure!(self.rest.len() <= LINE_MAX, "it prints a line of more than {LINE_MAX} bytes");
        Ok(())
    }

    /// What was printed last may lack its newline.
    pub fn end(self, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.rest.iter().all(u8::is_ascii_whitespace) { Ok(()) } else { each(&self.rest) }
    }
}

/// One line that `program` printed.
pub fn message<M: DeserializeOwned>(program: &str, line: &[u8]) -> Result<M> {
    let no_message =
        |cause: &str| anyhow!("{program} printed `{}`, which is no message: {}", shown(line), printable(cause));
    // A list could be read as the fields in their order.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(no_message("not a JSON object"));
    }
    serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        no_message(text.split(" at line ").next().unwrap_or_default())
    })
}

/// The beginning of a line, as it may be shown.
fn shown(line: &[u8]) -> String {
    const MOST: usize = 60;
    let text = String::from_utf8_lossy(&line[..line.len().min(4 * MOST)]);
    let mut short: String = text.chars().take(MOST).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    printable(&short)
}

/// While it dumps.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToDump {
    /// A file that it made: what follows the stem and a dot in its name.
    pub file: Option<String>,
    /// What it writes to descriptor 3: what shall follow the stem and a dot, before `.zst`.
    pub stream: Option<String>,
    pub progress: Option<f64>,
    pub mode: Option<String>,
    pub fingerprint: Option<String>,
    /// Further fields for the dump's record.
    pub record: Map<String, Value>,
}

/// Of a verification.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToVerify {
    decision: String,
    #[serde(default)]
    why: String,
}

/// While it restores.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToRestore {
    to: Option<String>,
    pub progress: Option<f64>,
}

impl ToVerify {
    pub fn verdict(self) -> Result<Verdict> {
        let known = [Decision::Good, Decision::Bad, Decision::Unknown];
        let decision = known.into_iter().find(|known| known.as_str() == self.decision);
        let decision = decision
            .with_context(|| format!("`{}` is no verdict: good, bad or unknown", shown(self.decision.as_bytes())))?;
        Ok(Verdict { decision, why: printable(&self.why.chars().take(WHY_MAX).collect::<String>()) })
    }
}

impl ToRestore {
    pub fn target(self) -> Result<Option<String>> {
        let Some(to) = self.to else { return Ok(None) };
        ensure!(!to.trim().is_empty(), "it says that it made something without a name");
        Ok(Some(printable(&to)))
    }
}

/// What was said while it dumped, so far.
#[derive(Debug, Default)]
pub struct Said {
    pub files: Vec<String>,
    pub stream: Option<String>,
    pub progress: f64,
    pub mode: Option<String>,
    pub fingerprint: Option<String>,
    pub record: Map<String, Value>,
}

impl Said {
    /// Takes one message in. Names of files come out whole.
    pub fn hear(&mut self, stem: &Stem, message: ToDump) -> Result<()> {
        if let Some(extension) = message.file {
            self.files.push(name(stem, &extension)?);
        }
        if let Some(extension) = message.stream {
            ensure!(self.stream.is_none(), "it names its stream twice");
            self.stream = Some(name(stem, &format!("{extension}.zst"))?);
        }
        let mut names: Vec<&String> = self.files.iter().chain(&self.stream).collect();
        ensure!(names.len() <= NAMES_MAX, "it names more than {NAMES_MAX} files");
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("it names {} twice", pair[0]);
        }
        if let Some(done) = message.progress {
            ensure!((0.0..=1.0).contains(&done), "its progress is {done}: it goes from 0 to 1");
            self.progress = done;
        }
        self.mode = message.mode.or(self.mode.take());
        self.fingerprint = message.fingerprint.or(self.fingerprint.take());
        self.record.extend(message.record);
        Ok(())
    }
}

fn name(stem: &Stem, extension: &str) -> Result<String> {
    let name = format!("{stem}.{extension}");
    let sound = stem.owns(&name) && name != stem.log();
    sound.then_some(name).with_context(|| {
        format!(
            "it names a file `{}`: letters, digits, `_` and dots may follow the stem, and `log` is its log",
            shown(extension.as_bytes())
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Result<Vec<String>> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        let mut each = |line: &[u8]| {
            seen.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        };
        for chunk in chunks {
            lines.feed(chunk, &mut each)?;
        }
        lines.end(&mut each)?;
        Ok(seen)
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        assert_eq!(lines(&[b"a\nb", b"c\n", b"\n \nd", b"e"]).unwrap(), ["a", "bc", "de"]);
        assert_eq!(lines(&[b"", b"\n"]).unwrap(), Vec::<String>::new());
        let long = vec![b'x'; LINE_MAX];
        assert_eq!(lines(&[&long]).unwrap().len(), 1);
        assert!(lines(&[&long, b"x"]).is_err());
    }

    #[test]
    fn what_a_dump_may_say() {
        let stem = Stem::new("a\"b-20261120T010002Z").unwrap();
        let hear = |texts: &[&str]| -> Result<Said> {
            let mut said = Said::default();
            for text in texts {
                said.hear(&stem, message("bak-driver-x", text.as_bytes())?)?;
            }
            Ok(said)
        };
        let said = hear(&[r#"{"stream":"sql","progress":0.5}"#, r#"{"file":"globals.sql","record":{"x":1}}"#]).unwrap();
        assert_eq!(said.stream.as_deref(), Some("a\"b-20261120T010002Z.sql.zst"));
        assert_eq!(said.files, ["a\"b-20261120T010002Z.globals.sql"]);
        for (bad, why) in [
            (r#"{"file":"../x"}"#, "it names a file `../x`"),
            (r#"{"file":""}"#, "it names a file"),
            (r#"{"file":"a b"}"#, "it names a file"),
            (r#"{"file":"log"}"#, "`log` is its log"),
            (r#"{"file":"dump.json"}"#, "it names a file"),
            (r#"{"progress":7}"#, "from 0 to 1"),
            (r#"{"progress":null,"x":1}"#, "unknown field `x`"),
            (r#"{"file":7}"#, "expected a string"),
            ("[]", "no message"),
            ("pg_dump: done", "bak-driver-x printed `pg_dump: done`, which is no message"),
            ("\u{1b}[2J", "printed `\\u{1b}[2J`"),
        ] {
            let error = format!("{:#}", hear(&[bad]).unwrap_err());
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(hear(&[r#"{"stream":"sql"}"#, r#"{"stream":"sql"}"#]).is_err());
        assert!(hear(&[r#"{"stream":"sql"}"#, r#"{"file":"sql.zst"}"#]).is_err());
    }

    #[test]
    fn verdicts() {
        let verdict = |text: &str| message::<ToVerify>("x", text.as_bytes()).and_then(ToVerify::verdict);
        let bad = verdict(r#"{"decision":"bad","why":"torn\npage"}"#).unwrap();
        assert_eq!((bad.decision, bad.why.as_str()), (Decision::Bad, "torn\\npage"));
        for text in [r#"{"decision":"fine"}"#, "{}", r#"{"why":"x"}"#] {
            assert!(verdict(text).is_err(), "{text}");
        }
    }
}
