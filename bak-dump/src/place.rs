//! A place that dumps are read from, opened: a store here, or a far side.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::far::LimitReached;
use bak_common::store::{Listing, Store};

use crate::fetch::{Budget, FetchArgs, Source};
use crate::origin::Origin;

pub enum Place<'a> {
    Here { store: Store, listing: Listing },
    There(Box<Source<'a>>),
}

impl<'a> Place<'a> {
    /// Opens and lists it.
    pub fn open(session: &'a Session, origin: Origin, args: &FetchArgs, budget: Budget) -> Result<Self> {
        match origin {
            Origin::Dir(path) => {
                let store = Store::open(&path)?;
                Ok(Place::Here { listing: store.list(), store })
            }
            Origin::Far(place) => Ok(Place::There(Box::new(Source::open(session, *place, args, budget)?))),
        }
    }

    /// The same within limits. That too little is left of them for a look is an orderly end: nothing then, and it is said.
    pub fn open_within(session: &'a Session, origin: Origin, args: &FetchArgs) -> Result<Option<Self>> {
        let shown = match &origin {
            Origin::Dir(path) => path.display().to_string(),
            Origin::Far(place) => place.dest.name.clone(),
        };
        match Self::open(session, origin, args, Budget::Within) {
            Err(error) if error.is::<LimitReached>() => {
                let text = format!("{error:#}: nothing was looked at, and all of it remains for the next run");
                session.report.warn(&shown, &text);
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    pub fn listing(&self) -> &Listing {
        match self {
            Place::Here { listing, .. } => listing,
            Place::There(source) => &source.listing,
        }
    }

    /// The listing, for who goes on with the place by itself.
    pub fn take_listing(&mut self) -> Listing {
        match self {
            Place::Here { listing, .. } => std::mem::take(listing),
            Place::There(source) => std::mem::take(&mut source.listing),
        }
    }

    /// What it is called for people.
    pub fn shown(&self) -> String {
        match self {
            Place::Here { store, .. } => store.path().display().to_string(),
            Place::There(source) => source.shown().trim_end_matches('/').to_owned(),
        }
    }
}
