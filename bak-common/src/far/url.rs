//! Where a destination is, as the user writes it.

use anyhow::Result;
use std::path::PathBuf;

use crate::name::printable;
use crate::report::Kind;

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// A directory on this machine: a mounted disk or share.
    Path(PathBuf),
    /// `[user@]host:path`, over ssh.
    Ssh { host: String, path: String },
}

impl Url {
    pub fn parse(text: &str) -> Result<Self> {
        let usage = |why: &str| Kind::Usage.says(format!("`{}` is no destination: {why}", printable(text)));
        if text.contains("://") {
            return Err(usage("only mounted paths and [user@]host:path are known to this version"));
        }
        let (head, rest) = text.split_once(':').map_or((text, None), |(head, rest)| (head, Some(rest)));
        match rest {
            Some(path) if !head.contains('/') => {
                if head.is_empty()
                    || head.starts_with('-')
                    || head.contains(char::is_whitespace)
                    || path.starts_with(':')
                {
                    return Err(usage("a host is written [user@]host:path"));
                }
                if path.is_empty() {
                    return Err(usage("name the directory over there: host:/path"));
                }
                Ok(Url::Ssh { host: head.to_owned(), path: path.trim_end_matches('/').to_owned() + "/" })
            }
            _ if text.is_empty() => Err(usage("it is empty")),
            _ => Ok(Url::Path(std::path::absolute(text).map_err(|error| usage(&error.to_string()))?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let ssh = |host: &str, path: &str| Url::Ssh { host: host.into(), path: path.into() };
        assert_eq!(Url::parse("backup@box:/srv/bak").unwrap(), ssh("backup@box", "/srv/bak/"));
        assert_eq!(Url::parse("box:bak/").unwrap(), ssh("box", "bak/"));
        assert_eq!(Url::parse("/mnt/a:b").unwrap(), Url::Path("/mnt/a:b".into()));
        for bad in ["", ":/x", "box:", "box::module", "-oProxyCommand=x:/y", "a b:/x", "rsync://box/m", "s3://x"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }
}
