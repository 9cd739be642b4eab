//! Placement: which replica group holds a series.
//!
//! A series' [`token`] is a point of a space of 2³² tokens. [`ranges`] divides that space evenly among numbered groups, as
//! a pure function of how many there are; [`ring`] is the immutable snapshot services look tokens up in.
//!
//! Absent on purpose: who the members of a group are and how they are reached, their lifecycles, any I/O, any state that
//! would have to be agreed on. Two processes that know the same group numbers place every series alike.

pub mod ranges;
pub mod ring;
pub mod token;

pub use ring::{GroupId, MAX_GROUPS, Ring, RingError};
pub use token::{Token, metadata_token, series_token};
