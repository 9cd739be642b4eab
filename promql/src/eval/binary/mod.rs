//! Binary operators: [`arithmetic`] on two values, [`vector_scalar`] on a vector and a scalar, [`vector_vector`] and
//! [`set`] on two vectors.

pub(crate) mod arithmetic;
pub(crate) mod set;
pub(crate) mod vector_scalar;
pub(crate) mod vector_vector;
