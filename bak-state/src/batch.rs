//! Orders that wait for the database's lock are carried out together, by whoever has it.
//!
//! A set rewrites the list of guests whole, so that a crash leaves the old one or the new one; with 100,000 guests and
//! many writers, each would wait for all the others' rewriting. Who finds the database locked therefore leaves his order in
//! `queue/<token>`, whose lock he holds, and waits for the database as ever. Who has the database carries out the orders
//! that lie there with his own, by one rewrite: he takes each by renaming it to `<token>.taken`, and *after* the rewrite is
//! flushed writes the answers to `<token>.done`. Who then gets the database finds his answer, or none: then he carries out
//! his order himself. Whose patience ends withdraws his order, unless it was taken: then the answer is near. So nothing depends on a
//! queue: a leader who dies between commit and answer has moved guests to where the order moves them once more, which is
//! nothing; and an order whose lock is free is a dead program's, and never carried out. Only orders of that nature come
//! here: not `--from`, which must know whether it was the one who won.

use anyhow::{Context, Result, anyhow};
use bak_common::fsio;
use bak_common::lock::{Hold, Lock};
use bak_common::report::{self, Kind};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::status::Status;

const QUEUE: &str = "queue";
const ORDER_MAX: u64 = 1 << 20;

/// What is asked for: these guests, by their own names, to this status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub to: Status,
    pub force: bool,
    pub vms: Vec<String>,
}

/// What became of it, guest by guest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer(pub Vec<Done>);

#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    pub vm: String,
    /// Its status before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Status>,
    /// Why it was not moved, and the exit status of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<(u8, String)>,
}

impl Done {
    pub fn new(vm: String, was: Option<Status>, result: &Result<()>) -> Self {
        let failed = result.as_ref().err().map(|error| (report::status(error), format!("{error:#}")));
        Self { vm, was, failed }
    }

    pub fn result(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((4, why)) => Err(Kind::Refused.says(why)),
            Some((_, why)) => Err(anyhow!("{why}")),
        }
    }
}

/// An order that was left, by whoever left it. Dropped, it is withdrawn.
#[derive(Debug)]
pub struct Waiting {
    queue: OwnedFd,
    token: String,
    lock: Lock,
}

fn taken(token: &str) -> String {
    format!("{token}.taken")
}

fn done(token: &str) -> String {
    format!("{token}.done")
}

impl Waiting {
    /// Leaves an order in the database `db`; `None` if there is no need, as the one who has the database looked just then.
    pub fn leave(db: BorrowedFd, request: &Request) -> Result<Option<Self>> {
        let queue = fsio::make_dir(db, QUEUE)?;
        let token = uuid::Uuid::new_v4().simple().to_string();
        let Some(lock) = Lock::try_take(queue.as_fd(), &token, Hold::Exclusive)? else { return Ok(None) };
        let waiting = Self { queue, token, lock };
        waiting.lock.write(&serde_json::to_vec(request)?)?;
        Ok(Some(waiting))
    }

    /// The answer, if there is one. To be asked under the database's lock.
    pub fn answer(&self) -> Result<Option<Answer>> {
        let text = fsio::read_file(self.queue.as_fd(), &done(&self.token), ORDER_MAX)?;
        // What cannot be read, as on a disk that was full, is no answer.
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Takes the order back; false if somebody is carrying it out.
    pub fn withdraw(&self) -> bool {
        rustix::fs::unlinkat(&self.queue, &*self.token, rustix::fs::AtFlags::empty()).is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for name in [&self.token, &done(&self.token), &taken(&self.token)] {
            // Whoever writes next removes what cannot be removed now.
            let _ = fsio::unlink(self.queue.as_fd(), name);
        }
    }
}

/// The orders that others left, read under the database's lock.
#[derive(Debug, Default)]
pub struct Orders {
    queue: Option<OwnedFd>,
    pub waiting: Vec<(String, Request)>,
}

impl Orders {
    /// Reads the orders of those who still wait, and clears away what dead programs left.
    pub fn read(db: BorrowedFd) -> Result<Self> {
        let queue = match fsio::open_dir(db, QUEUE) {
            Ok(queue) => queue,
            Err(Errno::NOENT) => return Ok(Self::default()),
            Err(error) => return Err(error).context("cannot open the queue of orders"),
        };
        let names = fsio::names(queue.as_fd()).context("cannot list the queue of orders")?;
        let mut waiting = Vec::new();
        for (name, _) in &names {
            let token = name.split('.').next().unwrap_or_default();
            let taken = taken(token);
            if name.ends_with(".done") {
                if !names.iter().any(|(other, _)| *other == taken) {
                    fsio::unlink(queue.as_fd(), name)?;
                }
            } else if Lock::try_take(queue.as_fd(), name, Hold::Shared)?.is_some() {
                fsio::unlink(queue.as_fd(), name)?;
                fsio::unlink(queue.as_fd(), &done(token))?;
            } else if *name == token
                && let Some(text) = fsio::read_file(queue.as_fd(), name, ORDER_MAX)?
                // One that is just being written is left to its owner.
                && let Ok(request) = serde_json::from_slice(&text)
                && fsio::replace(queue.as_fd(), name, &taken).is_ok()
            {
                waiting.push((name.clone(), request));
            }
        }
        Ok(Self { queue: Some(queue), waiting })
    }

    /// Answers, once everything that the answers say is on disk.
    pub fn answer(&self, answers: &[(String, Answer)]) {
        for (token, answer) in answers {
            let Some(queue) = &self.queue else { return };
            // Without an answer the order is carried out once more, which changes nothing.
            if let Ok(bytes) = serde_json::to_vec(answer) {
                let _ = fsio::write_unflushed(queue.as_fd(), &done(token), &bytes);
            }
        }
    }
}
