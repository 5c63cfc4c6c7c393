//! Where dumps are looked for: the local store, then the destinations in their order; or the one place that was named. A place is
//! reached only when those before it don't have what is asked for.

use anyhow::{Result, anyhow};
use bak_common::args::{Places, Session};
use bak_common::report::{Kind, status};
use bak_common::store::Listing;
use std::path::Path;

use crate::fetch::{Budget, FetchArgs};
use crate::origin::{self, Origin};
use crate::pick::NotGood;
use crate::place::Place;

enum State<'a> {
    New(Origin),
    Opened(Place<'a>),
    /// It could not be reached: said once.
    Lost,
}

/// All places, in their order.
pub struct Sources<'a> {
    session: &'a Session,
    args: &'a FetchArgs,
    budget: Budget,
    /// What each is called.
    places: Vec<(String, State<'a>)>,
    /// Whether the first is the local store.
    own: bool,
}

impl<'a> Sources<'a> {
    /// `from` is the one place that was named, if one was.
    pub fn new(
        session: &'a Session,
        from: Option<&Path>,
        places: &Places,
        args: &'a FetchArgs,
        budget: Budget,
    ) -> Result<Self> {
        let sources = |places, own| Self { session, args, budget, places, own };
        if let Some(from) = from {
            let origin = origin::from(from, places, session)?;
            return Ok(sources(vec![(from.display().to_string(), State::New(origin))], false));
        }
        let elsewhere = origin::destinations(places, session)?;
        let mut all = Vec::new();
        let local = match places.store(&session.config) {
            // A machine that was set up anew may have none yet.
            Ok(path) if !path.exists() && !elsewhere.is_empty() => None,
            Ok(path) => Some(path),
            Err(_) if !elsewhere.is_empty() => None,
            Err(error) => return Err(error),
        };
        let own = local.is_some();
        all.extend(local.map(|path| ("the store".to_owned(), State::New(Origin::Dir(path)))));
        all.extend(elsewhere.into_iter().map(|(name, origin)| (name, State::New(origin))));
        Ok(sources(all, own))
    }

    /// Whether any of them may have to be reached over a line.
    pub fn may_be_far(&self) -> bool {
        self.places
            .iter()
            .any(|(_, state)| matches!(state, State::New(Origin::Far(_)) | State::Opened(Place::There(_))))
    }

    /// Whether there is more than one.
    pub fn are_many(&self) -> bool {
        self.places.len() > 1
    }

    /// Whether what is known of this place is our own word.
    pub fn is_own(&self, at: usize) -> bool {
        self.own && at == 0
    }

    pub fn first(&mut self) -> Result<&mut Place<'a>> {
        self.place(0)
    }

    /// If there is only one place, what keeps us from it ends the run.
    pub fn must_be_reached(&mut self) -> Result<()> {
        if self.places.len() == 1 { self.first().map(drop) } else { Ok(()) }
    }

    /// One of the places, reached now if it was not yet.
    pub fn place(&mut self, at: usize) -> Result<&mut Place<'a>> {
        let (name, state) = &mut self.places[at];
        if let State::New(_) = state
            && let State::New(origin) = std::mem::replace(state, State::Lost)
        {
            *state = State::Opened(Place::open(self.session, origin, self.args, self.budget)?);
        }
        match state {
            State::Opened(place) => Ok(place),
            _ => Err(anyhow!("{name} could not be reached")),
        }
    }

    pub fn opened(&self) -> impl Iterator<Item = (usize, &Place<'a>)> {
        self.places.iter().enumerate().filter_map(|(at, (_, state))| match state {
            State::Opened(place) => Some((at, place)),
            _ => None,
        })
    }

    /// What `pick` finds in the first place that has it, and in which. Else why the first that was asked has it not. What is
    /// ambiguous in one place ends the search; a place that cannot be reached is a failure of its own, said once.
    /// A copy that is not good is told where another one is taken, as that of `what`.
    pub fn find<T>(&mut self, what: &str, pick: impl Fn(&Listing) -> Result<T>) -> Result<(usize, T)> {
        let (mut why, mut asked) = (None, Vec::new());
        for at in 0..self.places.len() {
            if matches!(self.places[at].1, State::Lost) {
                continue;
            }
            let alone = self.places.len() == 1;
            let picked = match self.place(at) {
                Ok(place) => pick(place.listing()),
                Err(error) if alone => return Err(error),
                Err(error) => {
                    self.session.report.fail(&self.places[at].0, &error);
                    continue;
                }
            };
            match picked {
                Ok(found) => {
                    if let Some(why) = why.filter(|error: &anyhow::Error| error.is::<NotGood>()) {
                        let text = format!("{why:#} (in {}); that of {} is taken", asked[0], self.places[at].0);
                        self.session.report.warn(what, &text);
                    }
                    return Ok((at, found));
                }
                Err(error) if status(&error) == Kind::Usage as u8 => return Err(error),
                Err(error) => _ = why.get_or_insert(error),
            }
            asked.push(self.places[at].0.clone());
        }
        let why = why.unwrap_or_else(|| anyhow!("no place where it could be could be reached"));
        match asked.get(1..) {
            Some(others @ [_, ..]) => Err(anyhow!("{why:#} (in {}; nor at {})", asked[0], others.join(", "))),
            _ => Err(why),
        }
    }
}
