//! Guests as a driver's program lists them. Pure.
//!
//! What a line may say is what a guest is; which driver it has, and the notes of other programs, are not the driver's to say.

use anyhow::{Context, Result, anyhow, ensure};
use bak_common::jsonl::Reader;
use bak_common::name::{GuestName, printable};
use bak_common::record::{Guest, VERSION};
use serde_json::{Map, Value, json};

use super::LISTED_AS;
use crate::driver::Listed;

/// What is true of all guests of a list.
pub struct Source<'a> {
    pub driver: &'a str,
    pub node: &'a str,
    pub prefix: Option<&'a str>,
}

/// Fields of a guest that only others set.
const NOT_ITS_OWN: [&str; 8] = ["v", "type", "driver", "status", "last_dump", "last_sent", "skipped", "planned"];

/// Reads all that `list` printed. A line that is no guest is one failure.
pub fn read(output: &[u8], source: &Source) -> Listed {
    let mut listed = Listed::default();
    let mut reader = Reader::new(output);
    while let Some(line) = reader.next_with(object) {
        match line {
            Ok(fields) => {
                let vm = fields.get("vm").and_then(Value::as_str).map(|vm| prefixed(vm, source));
                match guest(fields, source) {
                    Ok(guest) if listed.guests.iter().any(|known| known.key() == guest.key()) => {
                        listed.failed.push((guest.vm.to_string(), anyhow!("it is listed twice")));
                    }
                    Ok(guest) => listed.guests.push(guest),
                    Err(error) => listed.failed.push((vm.unwrap_or_else(|| place(source, reader.line())), error)),
                }
            }
            Err(bad) => listed.failed.push((place(source, bad.line), bad.error)),
        }
    }
    listed
}

fn place(source: &Source, line: usize) -> String {
    format!("bak-driver-{} list, line {line}", source.driver)
}

fn prefixed(vm: &str, source: &Source) -> String {
    format!("{}{vm}", source.prefix.unwrap_or_default())
}

fn object(line: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(anyhow!("it is no guest: not a JSON object")),
        Err(error) => {
            Err(anyhow!("it is no guest: {}", error.to_string().split(" at line ").next().unwrap_or_default()))
        }
    }
}

fn guest(mut fields: Map<String, Value>, source: &Source) -> Result<Guest> {
    let vm = fields.get("vm").and_then(Value::as_str).context("it is no guest: it has no `vm`")?.to_owned();
    let full = GuestName::new(prefixed(&vm, source))?;
    // As the driver says that it could not look at this one.
    if let Some(why) = fields.get("failed") {
        let why = why.get("why").unwrap_or(why);
        return Err(anyhow!("{}", printable(why.as_str().unwrap_or("the driver does not say why"))));
    }
    if let Some(field) = NOT_ITS_OWN.iter().find(|field| fields.contains_key(**field)) {
        // A record of bak's own may be printed as it is, but for what it would claim.
        let own = json!({"v": VERSION, "type": "guest", "driver": source.driver});
        ensure!(own.get(*field) == fields.get(*field), "it is no guest: `{field}` is not for a driver to say");
    }
    fields.insert("v".into(), VERSION.into());
    fields.insert("type".into(), "guest".into());
    fields.insert("driver".into(), source.driver.into());
    fields.insert("vm".into(), full.as_str().into());
    fields.entry("kind").or_insert_with(|| source.driver.into());
    fields.entry("node").or_insert_with(|| source.node.into());
    if source.prefix.is_some() {
        fields.entry("name").or_insert_with(|| vm.clone().into());
        fields.insert(LISTED_AS.into(), vm.into());
    }
    let guest: Guest =
        serde_json::from_value(Value::Object(fields)).map_err(|error| anyhow!("it is no guest: {error}"))?;
    let kind = &guest.kind;
    let sound = !kind.is_empty() && kind.len() <= 64 && !kind.contains(char::is_control);
    ensure!(sound, "it is no guest: its kind is `{}`", printable(kind));
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source { driver: "pg", node: "n1", prefix: None };

    #[test]
    fn the_least_that_a_line_must_say() {
        let listed = read(b"{\"vm\":\"db\"}\n\n{\"vm\":\"db\",\"kind\":\"other\",\"node\":\"n2\",\"x\":[1]}", &SOURCE);
        assert!(listed.failed.is_empty(), "{:?}", listed.failed);
        let [a, b] = &listed.guests[..] else { panic!() };
        assert_eq!((a.kind.as_str(), a.driver.as_str(), a.node.as_deref()), ("pg", "pg", Some("n1")));
        assert_eq!((b.kind.as_str(), b.node.as_deref(), &b.extra["x"]), ("other", Some("n2"), &json!([1])));
    }

    #[test]
    fn a_prefix_is_put_before_and_the_own_name_kept() {
        let listed = read(b"{\"vm\":\"db\"}", &Source { prefix: Some("n1-"), ..SOURCE });
        let guest = &listed.guests[0];
        assert_eq!(
            (guest.vm.as_str(), guest.name.as_deref(), &guest.extra[LISTED_AS]),
            ("n1-db", Some("db"), &json!("db"))
        );
    }

    #[test]
    fn lines_that_are_no_guests_fail_one_by_one() {
        let long = format!("{{\"vm\":\"{}\"}}", "x".repeat(300));
        for (line, what, why) in [
            ("List of databases", "bak-driver-pg list, line 2", "it is no guest: expected value"),
            ("[]", "bak-driver-pg list, line 2", "not a JSON object"),
            ("\u{fffd}", "bak-driver-pg list, line 2", "no guest"),
            ("{}", "bak-driver-pg list, line 2", "it has no `vm`"),
            (r#"{"vm":7}"#, "bak-driver-pg list, line 2", "it has no `vm`"),
            (r#"{"vm":""}"#, "", "name is empty"),
            (&long, &"x".repeat(300), "too long"),
            (r#"{"vm":"a\u0000"}"#, "a\0", "NUL"),
            (r#"{"vm":"a","driver":"image"}"#, "a", "`driver` is not for a driver"),
            (r#"{"vm":"a","planned":true}"#, "a", "`planned`"),
            (r#"{"vm":"a","size":"big"}"#, "a", "invalid type"),
            (r#"{"vm":"a","state":"asleep"}"#, "a", "unknown variant"),
            (r#"{"vm":"a","kind":""}"#, "a", "its kind is"),
            (r#"{"vm":"a","failed":"no connection"}"#, "a", "no connection"),
            (r#"{"vm":"a","failed":{"stage":"list","why":"torn"}}"#, "a", "torn"),
            (r#"{"vm":"good"}"#, "good", "listed twice"),
        ] {
            let listed = read(format!("{{\"vm\":\"good\"}}\n{line}\n{{\"vm\":\"last\"}}\n").as_bytes(), &SOURCE);
            let vms: Vec<_> = listed.guests.iter().map(|guest| guest.vm.as_str()).collect();
            assert_eq!(vms, ["good", "last"], "{line}");
            let [(about, error)] = &listed.failed[..] else { panic!("{line}") };
            assert_eq!(about, what, "{line}");
            assert!(format!("{error:#}").contains(why), "{line}: {error:#}");
        }
        let record = r#"{"v":1,"type":"guest","vm":"a","driver":"pg"}"#;
        assert_eq!(read(record.as_bytes(), &SOURCE).guests.len(), 1);
    }
}
