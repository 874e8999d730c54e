//! Cases of LU: the benchmark's shapes, awkward sizes, and the matrices on which elimination founders.

use super::{Kind, LuOp};
use crate::system::{self, labelled, spectra};
use bimetal_core::op::{Case, Fill, Input, Role, Spectrum, Structure};
use bimetal_core::{Result, Shape};

const RANDOM: Fill = Fill::Matrices(Structure::General, Spectrum::Random);

/// The matrices, and for a solution as many right-hand sides.
fn inputs(kind: Kind, dims: &[usize], sides: Option<usize>, fill: Fill) -> Vec<Input> {
    let a = Input::new(dims, fill);
    if kind != Kind::Solve {
        return vec![a];
    }
    let mut b = dims[..dims.len() - 1].to_vec();
    b.extend(sides);
    vec![a, Input::new(&b, Fill::Normal)]
}

fn name(dims: &[usize]) -> String {
    dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x")
}

pub(super) fn at_shape(kind: Kind, shape: &Shape) -> Result<Case> {
    let op = LuOp(kind);
    if kind == Kind::Lu {
        system::matrices("lu", "a", shape)?;
    } else {
        system::square(Kind::name_of(kind), "a", shape)?;
    }
    Ok(Case::new(op, inputs(kind, shape.dims(), Some(1), RANDOM), Role::Bench))
}

impl Kind {
    fn name_of(self) -> &'static str {
        bimetal_core::op::Op::name(&LuOp(self))
    }
}

pub(super) fn cases(kind: Kind) -> Vec<Case> {
    let mut cases = bench(kind);
    let agree = |dims: &[usize], sides: Option<usize>, fill, label: &str| {
        labelled(LuOp(kind), inputs(kind, dims, sides, fill), Role::Agree, label)
    };
    let square: [&[usize]; 23] = [
        &[0, 0], &[1, 1], &[2, 2], &[5, 5], &[17, 17], &[33, 33], &[100, 100], &[0, 4, 4], &[3, 0, 0], &[3, 1, 1],
        &[65, 2, 2], &[40, 3, 3], &[33, 7, 7], &[17, 9, 9], &[2, 3, 16, 16], &[3, 17, 17], &[19, 31, 31], &[5, 32, 32],
        &[3, 33, 33], &[2, 65, 65], &[2, 1, 2, 48, 48], &[2, 129, 129],
        &[330, 330],
    ];
    for (i, dims) in square.iter().enumerate() {
        let sides = [Some(1), None, Some(3), Some(0)][i % 4];
        cases.push(agree(dims, sides, RANDOM, &format!("{} sizes", name(dims))));
    }
    if kind == Kind::Lu {
        let others: [&[usize]; 14] = [
            &[0, 3], &[3, 0], &[1, 7], &[7, 1], &[17, 5, 9], &[17, 9, 5], &[3, 33, 20], &[3, 20, 33], &[2, 130, 40],
            &[2, 40, 130], &[200, 70], &[70, 200], &[290, 350], &[33_000, 3],
        ];
        cases.extend(others.iter().map(|dims| agree(dims, None, RANDOM, &format!("{} sizes", name(dims)))));
    }
    if kind == Kind::Solve {
        for [n, sides] in [[16usize, 33], [33, 65], [20, 300], [130, 70]] {
            cases.push(agree(&[2, n, n], Some(sides), RANDOM, &format!("{n} {sides} sides")));
        }
    }
    for dims in [&[3usize, 7, 7][..], &[5, 16, 16], &[5, 32, 32], &[3, 50, 50], &[1, 130, 130]] {
        cases.extend(spectra(Structure::General, dims, |fill, label| agree(dims, Some(2), fill, label)));
    }
    cases
}

fn bench(kind: Kind) -> Vec<Case> {
    let shapes: &[&[usize]] = match kind {
        Kind::Solve => &[
            &[100, 16, 16], &[500, 16, 16], &[100, 32, 32], &[200, 48, 48], &[100, 64, 64], &[10000, 32, 32],
            &[512, 512], &[1024, 1024], &[2048, 2048],
        ],
        Kind::Lu => &[&[500, 16, 16], &[200, 48, 48], &[10000, 32, 32], &[1024, 1024], &[2048, 2048]],
        _ => &[&[500, 16, 16], &[200, 48, 48], &[10000, 32, 32], &[1024, 1024]],
    };
    let case = |dims: &&[usize]| labelled(LuOp(kind), inputs(kind, dims, Some(1), RANDOM), Role::Bench, &name(dims));
    shapes.iter().map(case).collect()
}
