//! What VBoxManage says while it works and when it fails. Pure.

use anyhow::{Error, anyhow};
use bak_common::command::Finished;

/// How much of its words goes into a message, in characters.
const WORDS_MAX: usize = 500;

/// How far it is by its progress, `0%...10%...20%...`, from 0 to 1.
pub fn percent(said: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(said);
    let before = text.rsplit_once('%')?.0;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse::<f64>().ok().map(|percent| (percent / 100.0).min(1.0))
}

/// Why `VBoxManage <command>` failed, in one line.
pub fn error(command: &str, finished: &Finished) -> Error {
    let words = words(&finished.stderr);
    match finished.status.code() {
        Some(_) if !words.is_empty() => anyhow!("VBoxManage {command} failed: {words}"),
        _ => finished.error(),
    }
}

/// Its errors without where in its own source they arose, and the code of the last.
fn words(stderr: &str) -> String {
    let mut said: Vec<&str> = Vec::new();
    let mut code = None;
    for line in stderr.lines().filter_map(|line| Some(line.split_once("VBoxManage: error: ")?.1.trim())) {
        if let Some(details) = line.strip_prefix("Details: code ") {
            code = details.split([' ', ',']).next();
        } else if !line.starts_with("Context: ") && !line.is_empty() && !said.contains(&line) {
            said.push(line);
        }
    }
    let mut text: String = said.join(": ").chars().take(WORDS_MAX).collect();
    if let Some(code) = code.filter(|_| !text.is_empty()) {
        text += &format!(" ({code})");
    }
    text
}

/// Whether it failed because there is no such machine (any more).
pub fn is_gone(finished: &Finished) -> bool {
    finished.stderr.contains("VBOX_E_OBJECT_NOT_FOUND")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress() {
        for (text, done) in [
            ("0%...", Some(0.0)),
            ("0%...10%...20%...3", Some(0.2)),
            ("0%...10%...20%...30%...40%...50%...60%...70%...80%...90%...100%\n", Some(1.0)),
            ("Progress state: VBOX_E_FILE_ERROR", None),
            ("999%", Some(1.0)),
            ("%", None),
        ] {
            assert_eq!(percent(text.as_bytes()), done, "{text}");
        }
    }

    #[test]
    fn errors() {
        let text = "0%...10%...\nProgress state: VBOX_E_FILE_ERROR\nVBoxManage: error: Appliance write failed\n\
            VBoxManage: error: Could not create the exported medium 'machine-disk001.vmdk' (VERR_DISK_FULL)\n\
            VBoxManage: error: Details: code VBOX_E_FILE_ERROR (0x80bb0004), component ApplianceWrap, interface IAppliance\n\
            VBoxManage: error: Context: \"RTEXITCODE handleExportAppliance(HandlerArg*)\" at line 1351 of file VBoxManageAppliance.cpp\n";
        let expected = "Appliance write failed: Could not create the exported medium 'machine-disk001.vmdk' (VERR_DISK_FULL) \
                        (VBOX_E_FILE_ERROR)";
        assert_eq!(words(text), expected);
        assert_eq!(words("0%...VBoxManage: error: no\n"), "no");
        assert_eq!(words("nonsense\n"), "");
    }
}
