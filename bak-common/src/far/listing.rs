//! What rsync's listings say: files, and the dumps that they make up. Pure.

use std::collections::HashMap;

use crate::calendar::Time;
use crate::name::{Stem, is_component};
use crate::record::Dump;
use crate::store::{Entry, Listing, Unreadable};

/// A file over there, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarFile {
    /// Below the destination's directory.
    pub name: String,
    pub bytes: u64,
    pub modified: Time,
    pub kind: FarKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarKind {
    File,
    Dir,
    Other,
}

/// One line of `--list-only`: permissions, size, date, time, name.
pub fn listed(line: &str) -> Option<FarFile> {
    let (mode, rest) = line.split_once(' ')?;
    let (bytes, rest) = rest.trim_start().split_once(' ')?;
    let (date, rest) = rest.split_once(' ')?;
    let (time, name) = rest.split_once(' ')?;
    // A date that is none (of a foreign file, beyond the year 9999) equals no date of ours.
    let modified = format!("{}T{time}Z", date.replace('/', "-")).parse().unwrap_or(Time::from_unix(0)?);
    let kind = match mode.as_bytes().first()? {
        b'-' => FarKind::File,
        b'd' => FarKind::Dir,
        _ => FarKind::Other,
    };
    Some(FarFile { name: unescape(name), bytes: bytes.parse().ok()?, modified, kind })
}

/// rsync writes what it will not print as `\#` and three octal digits.
fn unescape(name: &str) -> String {
    let mut out = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if let [b'\\', b'#', a, b, c, left @ ..] = rest
            && let Some(value) =
                [a, b, c].iter().try_fold(0_u32, |sum, digit| Some(sum * 8 + char::from(**digit).to_digit(8)?))
            && let Ok(value) = u8::try_from(value)
        {
            out.push(value);
            rest = left;
        } else {
            out.push(*byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The sidecars that a listing shows: place, stem, and the whole name.
pub fn sidecars(files: &[FarFile]) -> Vec<(String, Stem, String)> {
    let visible = |file: &&FarFile| file.kind == FarKind::File && file.name.split('/').all(is_component);
    let sidecar = |file: &FarFile| {
        let (place, name) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
        Some((place.to_owned(), Stem::of_sidecar(name)?, file.name.clone()))
    };
    files.iter().filter(visible).filter_map(sidecar).collect()
}

/// The dumps over there, from a whole listing and the text of each sidecar, by its name; what was not fetched is
/// unreadable. `top` is what their directories are called.
pub fn dumps(top: &str, files: &[FarFile], texts: &HashMap<String, Vec<u8>>) -> Listing {
    let by_name: HashMap<&str, &FarFile> = files.iter().map(|file| (file.name.as_str(), file)).collect();
    let mut listing = Listing::default();
    for (place, stem, name) in sidecars(files) {
        let read = texts.get(&name).ok_or_else(|| anyhow::anyhow!("it could not be fetched"));
        match read.and_then(|text| Dump::from_sidecar(&stem, text)) {
            Ok(mut dump) => {
                let slash = if place.is_empty() { "" } else { "/" };
                let incomplete = dump.files.iter().find_map(|file| {
                    match by_name.get(format!("{place}{slash}{}", file.name).as_str()) {
                        None => Some(format!("its file {} is missing", file.name)),
                        Some(there) if there.kind != FarKind::File => {
                            Some(format!("its file {} is not a regular file", file.name))
                        }
                        Some(there) if there.bytes != file.bytes => {
                            Some(format!("its file {} has {} bytes instead of {}", file.name, there.bytes, file.bytes))
                        }
                        Some(_) => None,
                    }
                });
                dump.dir = Some(format!("{}/{place}", top.trim_end_matches('/')));
                listing.dumps.push(Entry::new(dump, place, incomplete, Vec::new()));
            }
            Err(error) => listing.unreadable.push(Unreadable { place, stem: Some(stem), error }),
        }
    }
    listing.sort();
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings() {
        let line = "-rw-r--r--     3000000 2026/01/01 01:02:03 web/a \\#012 b";
        let file = listed(line).unwrap();
        assert_eq!((file.name.as_str(), file.bytes, file.kind), ("web/a \n b", 3_000_000, FarKind::File));
        assert_eq!(file.modified.to_string(), "2026-01-01T01:02:03Z");
        assert_eq!(listed("drwxr-xr-x        4096 2026/11/20 18:07:19 web").unwrap().kind, FarKind::Dir);
        assert_eq!(listed("lrwxrwxrwx          11 2026/11/20 18:07:19 web/x").unwrap().kind, FarKind::Other);
        for bad in ["", "-rw", "-rw-r--r-- x 2026/01/01 01:02:03 a"] {
            assert!(listed(bad).is_none(), "{bad}");
        }
    }
}
