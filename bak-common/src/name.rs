//! Names that must not be mixed up: guests, stems, dump ids.
//!
//! Each is checked when it is made, so that nothing later can leave a store through a name: a guest's name is
//! percent-encoded before it becomes part of a path, and a stem or file name holds no separator at all.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::calendar::Time;

/// The longest guest name, in bytes of its encoded form. File names end at 255 bytes; this leaves room for the start
/// time, the extension, and the temporary suffix that rsync adds.
pub const NAME_MAX: usize = 200;

const STEM_MAX: usize = NAME_MAX + 1 + "20261120T010002Z".len();

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = anyhow::Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

/// What a guest is called in records: any text but the empty one, NUL, and names too long for a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);
text_newtype!(GuestName);

impl GuestName {
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        ensure!(!text.is_empty(), "a guest's name is empty");
        ensure!(!text.contains('\0'), "a guest's name holds a NUL character");
        let encoded = encode(&text).len();
        ensure!(
            encoded <= NAME_MAX,
            "the guest's name is too long for a file name: {encoded} of at most {NAME_MAX} bytes"
        );
        Ok(Self(text))
    }

    /// The name as one component of a path: `%`, `/`, control characters and a leading dot are percent-encoded.
    pub fn encoded(&self) -> String {
        encode(&self.0)
    }
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.chars().enumerate() {
        if c == '%' || c == '/' || c.is_control() || (c == '.' && i == 0) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The file-name stem that all files of one dump share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stem(String);
text_newtype!(Stem);

/// What ends the name of a sidecar.
pub const SIDECAR: &str = ".dump.json";

impl Stem {
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        ensure!(
            is_component(&text) && !text.ends_with('.') && text.len() <= STEM_MAX,
            "`{}` cannot be the stem of file names",
            text.escape_debug()
        );
        Ok(Self(text))
    }

    /// The stem of a dump that bak names itself: `<vm>-<start>`.
    pub fn of(vm: &GuestName, started: Time) -> Self {
        // In bounds: NAME_MAX bytes, a dash and 16 characters; and an encoded name is a sound component.
        Self(format!("{}-{}", vm.encoded(), started.compact()))
    }

    pub fn sidecar(&self) -> String {
        format!("{}{SIDECAR}", self.0)
    }

    /// What the log beside the files of a dump is called.
    pub fn log(&self) -> String {
        format!("{}.log", self.0)
    }

    /// The stem of the sidecar called `file`, if that is a sidecar's name.
    pub fn of_sidecar(file: &str) -> Option<Self> {
        Self::new(file.strip_suffix(SIDECAR)?).ok()
    }

    /// Whether `file` may be one of this stem's data files: stem, a dot, an extension of letters, digits, `_` and further
    /// dots, and no sidecar. Every stem that a program makes holds a dash, so no file of another stem is ever owned, even
    /// where one guest is called `web` and another `web.prod`.
    pub fn owns(&self, file: &str) -> bool {
        let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        self.extension(file).is_some_and(|ext| ext.split('.').all(part))
            && is_component(file)
            && !file.ends_with(SIDECAR)
    }

    /// What follows the stem and its dot in `file`.
    pub fn extension<'a>(&self, file: &'a str) -> Option<&'a str> {
        file.strip_prefix(self.0.as_str())?.strip_prefix('.')
    }
}

/// Whether `text` can be one visible component of a path, on any file system that bak meets.
pub fn is_component(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && !text.starts_with('.')
        && !text.contains(|c: char| c == '/' || c.is_control())
}

/// `<vm>@<start>`, unique wherever dumps of one guest meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DumpId(String);
text_newtype!(DumpId);

impl DumpId {
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let Some((vm, start)) = text.rsplit_once('@') else {
            bail!("`{}` is no dump id: <vm>@<start, UTC: 20261120T010002Z>", text.escape_debug());
        };
        GuestName::new(vm)?;
        Time::from_compact(start)?;
        Ok(Self(text))
    }

    pub fn of(vm: &GuestName, started: Time) -> Self {
        Self(format!("{vm}@{}", started.compact()))
    }
}

/// Text that is safe to print on a terminal or in one line of a log: control characters are escaped.
pub fn printable(text: &str) -> String {
    let hides = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().flat_map(|c| if hides(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_must_be_refused() {
        for bad in ["", "a\0b", &"x".repeat(201), &"/".repeat(67)] {
            assert!(GuestName::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a\nb", "a.", &"x".repeat(300)] {
            assert!(Stem::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "web", "web@", "@20261120T010002Z", "web@20261320T010002Z", "web@2026-11-20T01:00:02Z"] {
            assert!(DumpId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        let table = [
            ("web", "web"),
            (".web", "%2Eweb"),
            ("a.b", "a.b"),
            ("a/b", "a%2Fb"),
            ("50%", "50%25"),
            ("a\nb", "a%0Ab"),
            ("..", "%2E."),
        ];
        for (name, path) in table {
            assert_eq!(GuestName::new(name).unwrap().encoded(), path);
            assert!(is_component(path));
        }
    }

    #[test]
    fn a_stem_owns_its_own_files_only() {
        let stem = Stem::new("web-20261120T010002Z").unwrap();
        for yes in ["web-20261120T010002Z.qcow2", "web-20261120T010002Z.disk0.qcow2"] {
            assert!(stem.owns(yes), "{yes}");
        }
        for no in [
            "web-20261120T010002Z",
            "web-20261120T010002Z.",
            "web-2-20261120T010002Z.qcow2",
            "web-20261120T010002Z.dump.json",
            "web-20261120T010002Z.a/b",
            "web-20261120T010002Z.prod-20261103T010000Z.raw",
            "web-20261120T010002Z.x.dump.json",
            "web-20261120T010002Z..raw",
            "../web-20261120T010002Z.x",
        ] {
            assert!(!stem.owns(no), "{no}");
        }
    }

    #[test]
    fn what_is_printed_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable("Köln 東京"), "Köln 東京");
    }
}
