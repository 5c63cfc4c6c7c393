//! JSON lines in and out. A bad line is reported with its number and does not stop the others; a closed pipe ends the
//! program quietly.

use anyhow::{Context, Result, anyhow};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};

use crate::record::{Head, Record, to_line};
use crate::report::{Kind, PipeClosed, Report};

/// Longer lines are refused before they fill the memory.
pub const LINE_MAX: usize = 1 << 20;

/// The records of a pipe, one by one, as they come.
pub struct Reader<R> {
    input: BufReader<R>,
    line: usize,
}

/// One line that could not be used: its number (from 1) and why.
#[derive(Debug)]
pub struct BadLine {
    pub line: usize,
    pub error: anyhow::Error,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input: BufReader::new(input), line: 0 }
    }

    /// The next non-empty line without its newline; `None` at the end. A last line without a newline was cut off.
    fn next_line(&mut self) -> Result<Option<Result<Vec<u8>>>> {
        loop {
            self.line += 1;
            let mut text = Vec::new();
            let read = (&mut self.input)
                .take(LINE_MAX as u64 + 1)
                .read_until(b'\n', &mut text)
                .context("cannot read standard input")?;
            if read == 0 {
                return Ok(None);
            }
            if text.last() == Some(&b'\n') {
                text.pop();
                if text.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(Ok(text)));
            }
            if text.len() > LINE_MAX {
                self.skip_line()?;
                return Ok(Some(Err(anyhow!("it is longer than {LINE_MAX} bytes"))));
            }
            // Whole JSON without a newline is somebody's `printf`; half a record is a writer that died.
            let cut = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_err();
            return Ok(Some(if cut {
                Err(anyhow!("it is cut off: the program before ended in mid-record"))
            } else {
                Ok(text)
            }));
        }
    }

    fn skip_line(&mut self) -> Result<()> {
        loop {
            let buffer = self.input.fill_buf().context("cannot read standard input")?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|b| *b == b'\n');
            let used = end.map_or(buffer.len(), |at| at + 1);
            self.input.consume(used);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

impl<R: Read> Reader<R> {
    /// The number of the line that came last, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The next line as `parse` reads it.
    pub fn next_with<T>(&mut self, parse: fn(&[u8]) -> Result<T>) -> Option<Result<T, BadLine>> {
        let bad = |line, error| Some(Err(BadLine { line, error }));
        match self.next_line() {
            Ok(None) => None,
            Err(error) => bad(self.line, Kind::Usage.of(error)),
            Ok(Some(Err(error))) => bad(self.line, error),
            Ok(Some(Ok(text))) => match parse(&text) {
                Ok(record) => Some(Ok(record)),
                Err(error) => bad(self.line, error),
            },
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, BadLine>;
    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(Record::parse)
    }
}

/// Standard input up to its end. Bad lines go to `report`; what a dry run printed is refused (exit 2) unless this is one.
pub fn read_all(report: &Report, dry_run: bool) -> Result<Vec<Record>> {
    read_all_with(report, dry_run, Record::parse, Record::planned)
}

/// Which guests the records of standard input are about, for those who need to know no more; otherwise as [`read_all`].
pub fn read_heads(report: &Report, dry_run: bool) -> Result<Vec<Head>> {
    read_all_with(report, dry_run, Head::parse, |head| head.planned)
}

fn read_all_with<T>(
    report: &Report,
    dry_run: bool,
    parse: fn(&[u8]) -> Result<T>,
    planned: fn(&T) -> bool,
) -> Result<Vec<T>> {
    let mut records = Vec::new();
    let mut reader = Reader::new(std::io::stdin().lock());
    while let Some(item) = reader.next_with(parse) {
        match item {
            Ok(record) if planned(&record) && !dry_run => {
                return Err(Kind::Usage.says(
                    "standard input holds records of a dry run (planned): run the programs before this one without -n",
                ));
            }
            Ok(record) => records.push(record),
            Err(bad) => {
                let stop = crate::report::status(&bad.error) == Kind::Usage as u8;
                if stop {
                    return Err(bad.error);
                }
                report.fail(&format!("standard input, line {}", bad.line), &bad.error);
            }
        }
    }
    Ok(records)
}

/// Writes lines to standard output, each at once, so that the next program can begin.
pub struct Writer<W: Write> {
    output: BufWriter<W>,
}

impl Writer<std::io::Stdout> {
    pub fn stdout() -> Self {
        Self::new(std::io::stdout())
    }
}

impl<W: Write> Writer<W> {
    pub fn new(output: W) -> Self {
        Self { output: BufWriter::new(output) }
    }

    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.line(&to_line(record))
    }

    pub fn line(&mut self, text: &str) -> Result<()> {
        let result = self
            .output
            .write_all(text.as_bytes())
            .and_then(|()| self.output.write_all(b"\n"))
            .and_then(|()| self.output.flush());
        result.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => PipeClosed.into(),
            _ => anyhow!("cannot write standard output: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = r#"{"v":1,"type":"guest","vm":"web","kind":"qemu","driver":"image","x-mine":[1,2]}"#;

    fn read(text: &[u8]) -> Vec<Result<Record, usize>> {
        Reader::new(text).map(|item| item.map_err(|bad| bad.line)).collect()
    }

    #[test]
    fn a_bad_line_is_numbered_and_the_others_work() {
        let text = format!("{GUEST}\n\nnot json\n{GUEST}\n{{\"v\":1");
        let items = read(text.as_bytes());
        assert_eq!(items.len(), 4);
        assert!(items[0].is_ok() && items[2].is_ok());
        assert_eq!((items[1].as_ref().err(), items[3].as_ref().err()), (Some(&3), Some(&5)));
    }

    #[test]
    fn hostile_lines_are_one_failure_each() {
        let long = format!("{{\"v\":1,\"x\":\"{}\"}}\n{GUEST}\n", "x".repeat(LINE_MAX));
        assert!(matches!(read(long.as_bytes())[..], [Err(1), Ok(_)]));
        let deep = format!("{}\n{GUEST}\n", "[".repeat(100_000));
        assert!(matches!(read(deep.as_bytes())[..], [Err(1), Ok(_)]));
        assert!(matches!(read(b"\xff\xfe\n")[..], [Err(1)]));
    }

    #[test]
    fn unknown_fields_pass_through_in_place() {
        let record = Record::parse(GUEST.as_bytes()).unwrap();
        let mut out = Vec::new();
        Writer::new(&mut out).record(&record).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().trim(), GUEST);
    }
}
