//! The machines that `VBoxManage list vms` names, as `"name" {uuid}`. Pure.
//!
//! Names are printed as they are, with quotes, braces and line breaks, so that only the UUIDs are taken from here: an entry ends
//! with one in braces at the end of a line. What a name is, only `showvminfo` says for certain.

use anyhow::{Result, bail};

/// UUIDs in the order of the list, each once. Where a name imitates the end of an entry there may be one that no machine has.
pub fn uuids(text: &str) -> Result<Vec<&str>> {
    let mut found = Vec::new();
    let mut open = false;
    for line in text.lines() {
        // Debian's wrapper prints its warnings (no kernel module: no machine can be started) to standard output.
        let warning = line.starts_with("WARNING:") || line.starts_with([' ', '\t']) || line.trim().is_empty();
        if !open && warning {
            continue;
        }
        if !open && !line.starts_with('"') {
            bail!("cannot read what VBoxManage list vms prints: {}", line.chars().take(200).collect::<String>());
        }
        open = true;
        if let Some(uuid) = last(line) {
            if !found.contains(&uuid) {
                found.push(uuid);
            }
            open = false;
        }
    }
    if open {
        bail!("VBoxManage list vms ends within a machine's name");
    }
    Ok(found)
}

/// The UUID at the end of an entry.
fn last(line: &str) -> Option<&str> {
    let uuid = line.trim_end_matches('\r').strip_suffix('}')?.rsplit_once("\" {")?.1;
    is_uuid(uuid).then_some(uuid)
}

/// `6d0c1c5e-0000-4000-8000-000000000001`
pub fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == lengths.len()
        && parts
            .iter()
            .zip(lengths)
            .all(|(part, length)| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "11111111-1111-4111-8111-11111111111a";
    const B: &str = "22222222-2222-4222-8222-22222222222b";

    #[test]
    fn names_of_all_kinds() {
        for name in
            ["web", "VM of \"two\" words", "a} {b", "Köln 東京", "two\nlines\n", "\n", "", "a\\", "-x", "{x}\" {y"]
        {
            let text = format!("\"{name}\" {{{A}}}\n\"other\" {{{B}}}\n");
            assert_eq!(uuids(&text).unwrap(), [A, B], "{name:?}");
        }
        // It cannot be told from two; the one that is none is found out later.
        assert_eq!(uuids(&format!("\"x\" {{{B}}}\n\" {{{A}}}\n\"b\" {{{B}}}\n")).unwrap(), [B, A]);
    }

    #[test]
    fn what_else_is_printed() {
        let warning = "WARNING: The character device /dev/vboxdrv does not exist.\n\t Please install the virtualbox-dkms package\n\n\t You \
                       will not be able to start VMs until this problem is fixed.\n";
        assert_eq!(uuids(&format!("{warning}\"web\" {{{A}}}\r\n")).unwrap(), [A]);
        for none in ["", "\n", warning] {
            assert!(uuids(none).unwrap().is_empty(), "{none}");
        }
        for wrong in ["garbage\n", "\"web\"\n", "\"web\" {1234}\n", &format!("\"web\" {{{A}}}\nnonsense\n")] {
            assert!(uuids(wrong).is_err(), "{wrong}");
        }
    }
}
