//! Binary operators: [`arithmetic`] on two values, [`vector_scalar`] on a vector and a scalar, [`matching`] what the
//! two vector operators share, [`vector_vector`] and [`set`] the operators themselves.

pub(crate) mod arithmetic;
pub(crate) mod vector_scalar;
