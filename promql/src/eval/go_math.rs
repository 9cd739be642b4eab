//! Functions for which Go's library has shortcuts that show in answers; of the others only a last bit may differ.

/// Beyond this, `e^-x` no longer counts beside `e^x`, and Go leaves it out; so it is infinite where `e^x` is.
const LARGE: f64 = 21.0;

/// Hyperbolic cosine: infinite from 709.79 on rather than from 710.48.
pub(crate) fn cosh(x: f64) -> f64 {
    if x.abs() > LARGE { x.abs().exp() * 0.5 } else { x.cosh() }
}

/// Hyperbolic sine, likewise.
pub(crate) fn sinh(x: f64) -> f64 {
    if x.abs() > LARGE { (x.abs().exp() * 0.5).copysign(x) } else { x.sinh() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperbolic_functions_overflow_where_the_exponential_does() {
        assert_eq!((cosh(710.0), cosh(-710.0)), (f64::INFINITY, f64::INFINITY));
        assert_eq!((sinh(710.0), sinh(-710.0)), (f64::INFINITY, f64::NEG_INFINITY));
        assert!(cosh(709.7).is_finite() && sinh(-709.7).is_finite());
        assert_eq!((sinh(-0.0).to_bits(), cosh(0.0)), ((-0.0f64).to_bits(), 1.0));
        assert!(sinh(f64::NAN).is_nan() && cosh(f64::NAN).is_nan());
    }
}
