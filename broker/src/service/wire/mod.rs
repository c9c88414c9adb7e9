//! Between the words of the wire and the words of the house: what is let in, what it becomes, and what goes back. Pure: no clock, no
//! network, no state; every rule has its test beside it.

pub(crate) mod convert;
pub(crate) mod endpoints;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod validate;
