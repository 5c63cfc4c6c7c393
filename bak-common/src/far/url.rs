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
    /// `rsync://[user@]host[:port]/module[/path]`: a daemon that rsync speaks with.
    Daemon(Daemon),
}

/// A directory that an rsync daemon serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub user: Option<String>,
    /// A name or an address, without the brackets of one of IPv6.
    pub host: String,
    pub port: u16,
    pub module: String,
    /// Below the module: empty, or with a slash at its end.
    pub path: String,
}

/// Where rsync daemons listen.
const PORT: u16 = 873;

impl Url {
    pub fn parse(text: &str) -> Result<Self> {
        let usage = |why: &str| Kind::Usage.says(format!("`{}` is no destination: {why}", printable(text)));
        if let Some(rest) = text.strip_prefix("rsync://") {
            return daemon(rest).map(Url::Daemon).map_err(|why| usage(&why));
        }
        if text.contains("://") {
            return Err(usage("mounted paths, [user@]host:path and rsync://host/module are known"));
        }
        let (head, rest) = text.split_once(':').map_or((text, None), |(head, rest)| (head, Some(rest)));
        match rest {
            Some(path) if !head.contains('/') => {
                if path.starts_with(':') {
                    return Err(usage("a daemon's module is written rsync://[user@]host/module"));
                }
                if head.is_empty() || head.starts_with('-') || head.contains(char::is_whitespace) {
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

/// What follows `rsync://`. All of it is taken as it stands: there are no escapes in it, as rsync knows none.
fn daemon(rest: &str) -> Result<Daemon, String> {
    let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = place.rsplit_once('@').map_or((None, place), |(user, host)| (Some(user), host));
    let (host, port) = match host.strip_prefix('[') {
        Some(address) => address.split_once(']').ok_or("the bracket is not closed")?,
        None if host.matches(':').count() > 1 => {
            return Err("an address of IPv6 is written in brackets: rsync://[::1]/module".into());
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => PORT,
        Some(number) => number.parse().ok().filter(|port| *port > 0).ok_or("that port is none")?,
        None => return Err("after the bracket comes :port, or the module".into()),
    };
    let odd = |text: &str| text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control());
    if odd(host) {
        return Err("a daemon is written rsync://[user@]host[:port]/module[/path]".into());
    }
    match user {
        Some(user) if user.contains(':') => return Err("a password goes into a file: password_file".into()),
        Some(user) if odd(user) || user.contains('/') => return Err("that user is none".into()),
        _ => {}
    }
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let module = parts.next().ok_or("name the module: rsync://host/module")?;
    let below: Vec<&str> = parts.collect();
    if [module].iter().chain(&below).any(|part| *part == "." || *part == "..") {
        return Err("its path may not have . or .. in it".into());
    }
    // The daemon takes these for patterns.
    if path.contains(|c: char| c.is_control() || "*?[\\".contains(c)) {
        return Err("its path may not have control characters or any of * ? [ \\ in it".into());
    }
    let path = below.iter().map(|part| format!("{part}/")).collect();
    let user = user.map(str::to_owned);
    Ok(Daemon { user, host: host.to_owned(), port, module: module.to_owned(), path })
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
        for bad in ["", ":/x", "box:", "box::module", "-oProxyCommand=x:/y", "a b:/x", "s3://x"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn daemons() {
        let daemon = |user: &str, host: &str, port, module: &str, path: &str| {
            let user = (!user.is_empty()).then(|| user.to_owned());
            Url::Daemon(Daemon { user, host: host.into(), port, module: module.into(), path: path.into() })
        };
        for (text, expected) in [
            ("rsync://box/bak", daemon("", "box", 873, "bak", "")),
            ("rsync://box/bak/", daemon("", "box", 873, "bak", "")),
            ("rsync://me@box:8730/bak//a/b", daemon("me", "box", 8730, "bak", "a/b/")),
            ("rsync://me@work@[::1]/bak", daemon("me@work", "::1", 873, "bak", "")),
            ("rsync://[fe80::1%eth0]:1/bak", daemon("", "fe80::1%eth0", 1, "bak", "")),
            ("rsync://box/my bak/a b/50%/ä@:", daemon("", "box", 873, "my bak", "a b/50%/ä@:/")),
        ] {
            assert_eq!(Url::parse(text).unwrap(), expected, "{text}");
        }
        for (text, why) in [
            ("rsync://box", "name the module"),
            ("rsync://box/", "name the module"),
            ("rsync:///bak", "is written rsync://"),
            ("rsync://@box/bak", "that user is none"),
            ("rsync://me:secret@box/bak", "password_file"),
            ("rsync://::1/bak", "in brackets"),
            ("rsync://[::1/bak", "not closed"),
            ("rsync://[::1]x/bak", "comes :port"),
            ("rsync://box:0/bak", "port"),
            ("rsync://box:rsync/bak", "port"),
            ("rsync://box:70000/bak", "port"),
            ("rsync://box/bak/../etc", ".."),
            ("rsync://box/../etc", ".."),
            ("rsync://box/bak/a*", "* ?"),
            ("rsync://box/bak/a\nb", "control"),
            ("box::bak", "rsync://[user@]host/module"),
        ] {
            let error = format!("{:#}", Url::parse(text).unwrap_err());
            assert!(error.contains(why), "{error} should contain {why}");
        }
    }
}
