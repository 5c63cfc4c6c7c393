//! What the log beside an archive proves. vzdump copies it there when all is done, so its last line is the proof; its wording
//! drifts between versions, so it is matched loosely. Pure.

use crate::driver::vzdump::Heard;

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// How its last line ends the story.
    pub end: End,
    /// How long the backup took, in seconds.
    pub took_s: Option<i64>,
    /// What the guest is called.
    pub name: Option<String>,
    pub mode: Option<String>,
    /// The name of the archive that it was written about, without directories.
    pub archive: Option<String>,
    /// The size of that, in bytes: at least, at most.
    pub size: Option<(u64, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum End {
    Finished,
    /// Why the backup failed.
    Failed(String),
    /// Another guest's backup finished.
    Other(String),
    /// Nothing of all that: it is being written, or its writer died.
    #[default]
    Open,
}

/// Reads a log of the guest `id`; of a long one its beginning and its end will do.
pub fn read(text: &str, id: u32) -> Log {
    let mut log = Log::default();
    let mut mode = Heard::default();
    for line in text.lines().filter(|line| !is_progress(line)) {
        let said = said(line);
        if let Some(name) = said.strip_prefix("VM Name: ").or_else(|| said.strip_prefix("CT Name: ")) {
            log.name = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
        } else if said.starts_with("backup mode: ") {
            mode.line(line, id);
        } else if said.starts_with("creating ") && said.contains(" archive '") {
            let path = said.split('\'').nth(1).unwrap_or_default();
            log.archive = path.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned);
        } else if let Some(size) = said.strip_prefix("archive file size: ") {
            log.size = size_range(size.trim());
        }
    }
    log.mode = mode.mode;
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let mut heard = Heard::default();
    heard.line(last, id);
    log.end = if heard.finished {
        log.took_s = last.rsplit_once('(').and_then(|(_, rest)| clock(rest.split(')').next()?));
        End::Finished
    } else if let Some(why) = heard.failed {
        End::Failed(why)
    } else if said(last).starts_with("Finished Backup of VM ") {
        End::Other(heard.last)
    } else if last.contains("ERROR: ") {
        End::Failed(heard.last)
    } else {
        End::Open
    };
    log
}

/// ` 12% (1.0 GiB of 8.0 GiB) in 9s, …`, which most lines are.
fn is_progress(line: &str) -> bool {
    line.find('%').is_some_and(|at| line[at..].starts_with("% (") && line[..at].ends_with(|c: char| c.is_ascii_digit()))
}

/// A line without its date and level.
fn said(line: &str) -> &str {
    ["INFO: ", "WARN: ", "ERROR: "].iter().find_map(|level| Some(line.split_once(level)?.1)).unwrap_or(line).trim()
}

/// `01:02:03` in seconds; the hours may be many.
fn clock(text: &str) -> Option<i64> {
    let parts: Vec<i64> = text.split(':').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [hours @ 0..=99_999, minutes @ 0..60, seconds @ 0..60] => Some(hours * 3600 + minutes * 60 + seconds),
        _ => None,
    }
}

/// What may have been rounded to a size like `300MB` or `1.23GB`, which are powers of 1024.
fn size_range(text: &str) -> Option<(u64, u64)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let value: f64 = number.parse().ok()?;
    let factor = match unit.trim().trim_end_matches('B').trim_end_matches('i') {
        "" => 1.0,
        "K" | "k" => 1024.0,
        "M" => 1024.0 * 1024.0,
        "G" => 1024.0 * 1024.0 * 1024.0,
        "T" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let decimals = number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    // Rounded or cut off at its last digit; and a hundredth, as nobody promises that a G is 1024³ for ever.
    let slack = factor / 10_f64.powi(i32::try_from(decimals).ok()?) + value * factor / 100.0;
    Some(((value * factor - slack).max(0.0) as u64, (value * factor + slack) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "2026-11-20 02:00:02 INFO: Starting Backup of VM 100 (qemu)\n\
        2026-11-20 02:00:02 INFO: status = running\n2026-11-20 02:00:03 INFO: VM Name: web\n\
        2026-11-20 02:00:03 INFO: backup mode: snapshot\n\
        2026-11-20 02:00:04 INFO: creating vzdump archive '/var/lib/vz/dump/vzdump-qemu-100-2026_11_20-02_00_02.vma.zst'\n\
        2026-11-20 02:01:00 INFO:  12% (1.0 GiB of 8.0 GiB) in 9s, read: 120.0 MiB/s\n\
        2026-11-20 02:01:06 INFO: archive file size: 1.20GB\n2026-11-20 02:01:07 INFO: Finished Backup of VM 100 (00:01:05)\n";

    #[test]
    fn a_whole_log() {
        let log = read(WHOLE, 100);
        assert_eq!((log.end, log.took_s, log.mode.as_deref()), (End::Finished, Some(65), Some("snapshot")));
        assert_eq!(log.name.as_deref(), Some("web"));
        assert_eq!(log.archive.as_deref(), Some("vzdump-qemu-100-2026_11_20-02_00_02.vma.zst"));
        let (least, most) = log.size.unwrap();
        assert!(least < 1_277_752_770 && 1_299_227_607 < most && most < 1_320_000_000 && least > 1_250_000_000);
        assert_eq!(read(&format!("{WHOLE}\n \n"), 100).end, End::Finished);
    }

    #[test]
    fn how_logs_end() {
        let end = |last: &str| read(&format!("{WHOLE}{last}\n"), 100).end;
        assert_eq!(
            end("2026-11-20 02:01:07 ERROR: Backup of VM 100 failed - job aborted"),
            End::Failed("job aborted".into())
        );
        assert_eq!(
            end("2026-11-20 02:01:07 ERROR: Backup of VM 100 failed - unable to set protected flag - no"),
            End::Failed("unable to set protected flag - no".into())
        );
        assert_eq!(end("2026-11-20 02:01:07 ERROR: something else"), End::Failed("something else".into()));
        assert_eq!(
            end("2026-11-20 02:01:07 INFO: Finished Backup of VM 1000 (00:00:01)"),
            End::Other("Finished Backup of VM 1000 (00:00:01)".into())
        );
        assert_eq!(end("2026-11-20 02:01:07 INFO: Finished Backup of V"), End::Open);
        assert_eq!(end("2026-11-20 02:01:07 INFO: prune older backups"), End::Open);
        assert_eq!((read("", 100).end, read("\n\n", 100).end), (End::Open, End::Open));
    }

    #[test]
    fn sizes_and_clocks() {
        assert_eq!(size_range("300MB").map(|(least, most)| (least <= 300 << 20, most > 301 << 20)), Some((true, true)));
        assert_eq!(size_range("0B"), Some((0, 1)));
        for odd in ["", "MB", "300", "3 parsecs", "1.2.3GB"] {
            assert_eq!(size_range(odd), None, "{odd}");
        }
        assert_eq!(
            (clock("00:01:05"), clock("100:00:00"), clock("1:2"), clock("x")),
            (Some(65), Some(360_000), None, None)
        );
    }
}
