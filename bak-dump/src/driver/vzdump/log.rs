//! What vzdump says while it works. Its wording drifts between versions, so it is matched loosely. Pure.

/// How much of a line goes into a message, in characters.
const LAST_MAX: usize = 200;

/// What was read off its lines so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// From 0 to 1.
    pub done: f64,
    /// How the guest was really backed up: a snapshot that can't be made silently becomes something else.
    pub mode: Option<String>,
    /// It says that it finished this guest: the only proof there is.
    pub finished: bool,
    /// Why it failed, in its words.
    pub failed: Option<String>,
    /// The last line that is no progress.
    pub last: String,
}

impl Heard {
    /// Takes a line in, of the console or of a log, which has the date before it.
    pub fn line(&mut self, line: &str, id: u32) {
        let text = ["INFO: ", "WARN: ", "ERROR: "].iter().find_map(|level| Some(line.split_once(level)?.1));
        let text = text.unwrap_or(line).trim();
        if text.is_empty() {
            return;
        }
        if let Some(percent) = percent(text) {
            self.done = percent;
            return;
        }
        self.last = text.chars().take(LAST_MAX).collect();
        if let Some(mode) = text.strip_prefix("backup mode: ") {
            self.mode = Some(mode.trim().to_owned());
        }
        let of_this = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next() == Some(id.to_string().as_str());
        if text.strip_prefix("Finished Backup of VM ").is_some_and(of_this) {
            self.finished = true;
        }
        if let Some(rest) = text.strip_prefix("Backup of VM ").filter(|rest| of_this(rest))
            && let Some((_, why)) = rest.split_once(" failed - ")
        {
            self.failed = Some(why.trim().chars().take(LAST_MAX).collect());
        }
    }
}

/// ` 12% (1.0 GiB of 8.0 GiB) in 9s, …`
fn percent(text: &str) -> Option<f64> {
    let (digits, _) = text.split_once('%')?;
    let percent: f64 = digits.trim().parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut heard = Heard::default();
        for line in [
            "INFO: Starting Backup of VM 100 (qemu)",
            "INFO: backup mode: suspend",
            "INFO:  12% (1.0 GiB of 8.0 GiB) in 9s, read: 120.0 MiB/s, write: 60.0 MiB/s",
        ] {
            heard.line(line, 100);
        }
        assert_eq!((heard.done, heard.mode.as_deref(), heard.finished), (0.12, Some("suspend"), false));
        assert_eq!(heard.last, "backup mode: suspend");
        heard.line("INFO: Finished Backup of VM 1000 (00:00:01)", 100);
        assert!(!heard.finished);
        heard.line("2026-11-20 02:01:07 INFO: Finished Backup of VM 100 (00:01:05)", 100);
        assert!(heard.finished);
        heard.line("ERROR: Backup of VM 100 failed - command 'x' failed: exit code 5", 100);
        assert_eq!(heard.failed.as_deref(), Some("command 'x' failed: exit code 5"));
        heard.line("ERROR: Backup of VM 1 failed - no", 100);
        assert_eq!(heard.failed.as_deref(), Some("command 'x' failed: exit code 5"));
    }
}
