//! The verdict on a dump, from what was found. Pure.

use super::format::Found;
use crate::check::Compared;

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    Sizes,
    Hashes,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Good,
    Bad,
    Unknown,
}

impl Decision {
    /// As records spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Good => "good",
            Decision::Bad => "bad",
            Decision::Unknown => "unknown",
        }
    }
}

/// `formats`: what the format of each file proved, by name. Only content that was compared, with the SHA-256 from when the
/// dump was made or with a checksum in the file, makes a dump good.
pub fn judge(depth: Depth, compared: &Compared, formats: &[(String, Found)]) -> (Decision, String) {
    let unhashed = match compared {
        Compared::Differs(why) => return (Decision::Bad, why.clone()),
        Compared::Same { unhashed } => unhashed,
    };
    for (name, found) in formats {
        if let Found::Bad(why) = found {
            return (Decision::Bad, format!("{name}: {why}"));
        }
    }
    if depth == Depth::Sizes {
        return (Decision::Unknown, "only sizes were compared".into());
    }
    let found = |name: &String| formats.iter().find(|(of, _)| of == name).map(|(_, found)| found);
    for name in unhashed {
        let why = match found(name) {
            Some(Found::Sound(_)) => continue,
            Some(Found::Plausible(what)) => format!("and {what} does not look at content"),
            Some(Found::Unchecked(why)) => format!("and {why}"),
            _ => "so only its size was compared".to_owned(),
        };
        return (Decision::Unknown, format!("{name} has no SHA-256 in its record, {why}"));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (_, found) in formats {
        if let Found::Sound(what) | Found::Plausible(what) = found
            && !seen.contains(&what.as_str())
        {
            seen.push(what);
        }
    }
    let hashes = if unhashed.is_empty() { "SHA-256 as recorded" } else { "checksums in the files" };
    (Decision::Good, [hashes].into_iter().chain(seen).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let same = |unhashed: &[&str]| Compared::Same { unhashed: unhashed.iter().map(|n| n.to_string()).collect() };
        let sound = || Found::Sound("zstd -t".into());
        let plausible = || Found::Plausible("tar -t".into());
        let table = [
            (Depth::All, Compared::Differs("x".into()), sound(), Decision::Bad, "x"),
            (Depth::All, same(&[]), Found::Bad("cut".into()), Decision::Bad, "a: cut"),
            (Depth::All, same(&[]), sound(), Decision::Good, "SHA-256 as recorded, zstd -t"),
            (Depth::All, same(&[]), Found::Unchecked("no tool".into()), Decision::Good, "SHA-256 as recorded"),
            (Depth::All, same(&["a"]), sound(), Decision::Good, "checksums in the files, zstd -t"),
            (
                Depth::All,
                same(&["a"]),
                plausible(),
                Decision::Unknown,
                "a has no SHA-256 in its record, and tar -t does not look at content",
            ),
            (
                Depth::All,
                same(&["a"]),
                Found::Unchecked("nothing checks this format".into()),
                Decision::Unknown,
                "a has no SHA-256 in its record, and nothing checks this format",
            ),
            (Depth::Sizes, same(&["a"]), sound(), Decision::Unknown, "only sizes were compared"),
        ];
        for (depth, compared, found, decision, why) in table {
            assert_eq!(judge(depth, &compared, &[("a".into(), found)]), (decision, why.to_owned()), "{compared:?}");
        }
        assert_eq!(judge(Depth::Hashes, &same(&["b"]), &[]).0, Decision::Unknown);
    }
}
