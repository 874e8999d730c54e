//! Wrong calls of the operations.

use super::{Kind, Kind::Argument, Row, f32s, zeros};
use bimetal_core::DType;
use bimetal_ops::*;

pub const SOFTMAX: &[Row] = &[
    (
        "run: nine inputs",
        || {
            let (_, softmax) = registry::ops().find(|(_, op)| op.name() == "softmax").unwrap();
            bimetal_core::op::run(softmax.cases()[0].op.as_ref(), &[&f32s(&[2]); 9]).map(drop)
        },
        Argument,
        &["softmax", "`inputs`", "got 9"],
    ),
    ("softmax: axis", || softmax(&f32s(&[2, 3]), 2).map(drop), Argument, &["softmax", "axis", "-2..2", "got 2"]),
    ("softmax: negative axis", || softmax(&f32s(&[2, 3]), -3).map(drop), Argument, &["softmax", "axis", "got -3"]),
    ("softmax: farthest axis", || softmax(&f32s(&[2]), isize::MIN).map(drop), Argument, &["softmax", "axis"]),
    ("softmax: scalar", || softmax(&f32s(&[]), 0).map(drop), Argument, &["softmax", "axis", "[]"]),
    ("softmax: dtype", || softmax(&zeros(&[2], DType::I32), 0).map(drop), Kind::DType, &["softmax", "`x`", "i32"]),
    ("log_softmax: dtype", || log_softmax(&zeros(&[2], DType::F64), 0).map(drop), Kind::DType, &["log_softmax", "f64"]),
    (
        "softmax: output shape",
        || softmax_into(&f32s(&[2, 3]), 1, &mut f32s(&[3, 2])),
        Argument,
        &["softmax", "`out`", "[2, 3], got [3, 2]"],
    ),
    (
        "softmax: output dtype",
        || softmax_into(&f32s(&[2]), 0, &mut zeros(&[2], DType::F16)),
        Kind::DType,
        &["softmax", "`out`", "f16", "F32"],
    ),
    (
        "log_softmax: output rank",
        || log_softmax_into(&f32s(&[6]), 0, &mut f32s(&[1, 6])),
        Argument,
        &["log_softmax", "`out`"],
    ),
    (
        "softmax_backward: shapes",
        || softmax_backward(&f32s(&[2, 3]), &f32s(&[2, 4]), 1).map(drop),
        Argument,
        &["softmax_backward", "[2, 3]", "[2, 4]"],
    ),
    (
        "softmax_backward: dtypes",
        || softmax_backward(&f32s(&[2]), &zeros(&[2], DType::BF16), 0).map(drop),
        Kind::DType,
        &["softmax_backward", "f32", "BF16"],
    ),
    (
        "log_softmax_backward: axis",
        || log_softmax_backward(&f32s(&[2]), &f32s(&[2]), 1).map(drop),
        Argument,
        &["log_softmax_backward", "axis"],
    ),
    (
        "log_softmax_backward: output",
        || log_softmax_backward_into(&f32s(&[2]), &f32s(&[2]), 0, &mut f32s(&[3])),
        Argument,
        &["log_softmax_backward", "`out`"],
    ),
];

pub const ELEMENTWISE: &[Row] = &[
    ("exp: dtype", || exp(&zeros(&[2], DType::I32)).map(drop), Kind::DType, &["exp", "`x`", "i32"]),
    ("sqrt: dtype", || sqrt(&zeros(&[2], DType::F64)).map(drop), Kind::DType, &["sqrt", "f64", "BF16"]),
    (
        "tanh: output shape",
        || tanh_into(&f32s(&[2, 3]), &mut f32s(&[6])),
        Argument,
        &["tanh", "`out`", "[2, 3], got [6]"],
    ),
    (
        "sigmoid: output dtype",
        || sigmoid_into(&zeros(&[2], DType::BF16), &mut f32s(&[2])),
        Kind::DType,
        &["sigmoid", "`out`", "f32", "BF16"],
    ),
    ("clamp: dtype", || clamp(&zeros(&[2], DType::Bool), 0.0, 1.0).map(drop), Kind::DType, &["clamp", "bool"]),
    (
        "clamp: empty output",
        || clamp_into(&f32s(&[2]), 0.0, 1.0, &mut f32s(&[0])),
        Argument,
        &["clamp", "`out`", "[2], got [0]"],
    ),
];

pub const BINARY: &[Row] = &[
    ("add: shapes", || add(&f32s(&[2, 3]), &f32s(&[2])).map(drop), Argument, &["add", "`shapes`", "[2, 3] and [2]"]),
    (
        "mul: dtypes",
        || mul(&f32s(&[2]), &zeros(&[2], DType::F16)).map(drop),
        Kind::DType,
        &["mul", "`b`", "f16", "F32"],
    ),
    ("pow: dtype", || pow(&zeros(&[1], DType::I32), &f32s(&[1])).map(drop), Kind::DType, &["pow", "`a`", "i32"]),
    (
        "add: output of one operand's shape",
        || add_into(&f32s(&[2, 1]), &f32s(&[3]), &mut f32s(&[2, 1])),
        Argument,
        &["add", "`out`", "[2, 3], got [2, 1]"],
    ),
    ("lt: output dtype", || lt_into(&f32s(&[2]), &f32s(&[2]), &mut f32s(&[2])), Kind::DType, &["lt", "`out`", "Bool"]),
    ("eq: dtype", || eq(&zeros(&[2], DType::Bool), &zeros(&[2], DType::Bool)).map(drop), Kind::DType, &["eq", "bool"]),
    (
        "fma: third operand",
        || fma(&f32s(&[2]), &f32s(&[2]), &f32s(&[0])).map(drop),
        Argument,
        &["fma", "`shapes`", "[2] and [0]"],
    ),
    (
        "exp_backward: no broadcasting",
        || exp_backward(&f32s(&[2, 3]), &f32s(&[3])).map(drop),
        Argument,
        &["exp_backward", "`y`", "[2, 3]", "got [3]"],
    ),
    ("gelu: dtype", || gelu(&zeros(&[2], DType::F64)).map(drop), Kind::DType, &["gelu", "`x`", "f64"]),
    ("elu: output", || elu_into(&f32s(&[2]), 1.0, &mut f32s(&[2, 1])), Argument, &["elu", "`out`", "[2], got [2, 1]"]),
    (
        "silu_backward: dtypes",
        || silu_backward(&zeros(&[2], DType::BF16), &f32s(&[2])).map(drop),
        Kind::DType,
        &["silu_backward", "`x`", "f32", "BF16"],
    ),
];

pub const REDUCTION: &[Row] = &[
    (
        "histogram: no bins",
        || histogram(&f32s(&[2]), 0, 0.0, 1.0).map(drop),
        Argument,
        &["histogram", "`bins`", "got 0"],
    ),
    (
        "histogram: too many bins",
        || histogram(&f32s(&[2]), usize::MAX, 0.0, 1.0).map(drop),
        Argument,
        &["histogram", "`bins`", "16777216"],
    ),
    ("histogram: NaN", || histogram(&f32s(&[2]), 4, f64::NAN, 1.0).map(drop), Argument, &["`lo, hi`", "finite", "NaN"]),
    (
        "histogram: infinity",
        || histogram(&f32s(&[2]), 4, 0.0, f64::INFINITY).map(drop),
        Argument,
        &["`lo, hi`", "finite", "inf"],
    ),
    ("histogram: past f32", || histogram(&f32s(&[2]), 4, 0.0, 1e300).map(drop), Argument, &["`lo, hi`", "finite f32"]),
    ("histogram: backwards", || histogram(&f32s(&[2]), 4, 1.0, 1.0).map(drop), Argument, &["`lo, hi`", "lo < hi"]),
    (
        "histogram: output",
        || histogram_into(&f32s(&[2]), 4, 0.0, 1.0, &mut zeros(&[5], DType::I64)),
        Argument,
        &["histogram", "`out`", "[4], got [5]"],
    ),
    ("sum: axis", || sum(&f32s(&[2, 3]), Some(2)).map(drop), Argument, &["sum", "axis", "-2..2", "got 2"]),
    ("sum: dtype", || sum(&zeros(&[2], DType::I64), None).map(drop), Kind::DType, &["sum", "`x`", "i64"]),
    ("mean: axis of a scalar", || mean(&f32s(&[]), Some(0)).map(drop), Argument, &["mean", "axis", "[]"]),
    ("mean: output shape", || mean_into(&f32s(&[2, 3]), Some(1), &mut f32s(&[3])), Argument, &["mean", "`out`", "[2]"]),
    (
        "l2_norm: output dtype",
        || l2_norm_into(&f32s(&[2]), None, &mut zeros(&[], DType::F64)),
        Kind::DType,
        &["l2_norm", "`out`", "f64", "F32"],
    ),
    ("variance: axis", || variance(&f32s(&[2]), Some(-2), 1).map(drop), Argument, &["variance", "axis", "got -2"]),
    (
        "standard_deviation: dtype",
        || standard_deviation(&zeros(&[2], DType::U8), None, 0).map(drop),
        Kind::DType,
        &["standard_deviation", "u8"],
    ),
    ("max: of nothing", || max(&f32s(&[0]), None).map(drop), Argument, &["max", "`x`", "at least one element", "[0]"]),
    ("min: of an empty axis", || min(&f32s(&[3, 0]), Some(1)).map(drop), Argument, &["min", "`x`", "[3, 0]"]),
    ("argmin: of nothing", || argmin(&f32s(&[0, 2]), Some(0)).map(drop), Argument, &["argmin", "[0, 2]"]),
    (
        "argmax: output dtype",
        || argmax_into(&f32s(&[2, 3]), Some(1), &mut f32s(&[2])),
        Kind::DType,
        &["argmax", "`out`", "f32", "I64"],
    ),
    (
        "argmax: kept axis of another extent",
        || argmax_into(&f32s(&[2, 3]), Some(1), &mut zeros(&[2, 3], DType::I64)),
        Argument,
        &["argmax", "`out`", "[2, 1], got [2, 3]"],
    ),
];

pub const NORMALIZATION: &[Row] = &[
    (
        "group_norm: groups",
        || group_norm(&f32s(&[2, 6, 3]), 4, None, None, 1e-5).map(drop),
        Argument,
        &["group_norm", "`groups`", "divisor of the 6 channels, got 4"],
    ),
    (
        "group_norm: no groups",
        || group_norm(&f32s(&[2, 6]), 0, None, None, 1e-5).map(drop),
        Argument,
        &["`groups`", "got 0"],
    ),
    (
        "group_norm: no channels",
        || group_norm(&f32s(&[6]), 1, None, None, 1e-5).map(drop),
        Argument,
        &["group_norm", "`x`", "[samples, channels, ...], got [6]"],
    ),
    (
        "group_norm: bias",
        || group_norm(&f32s(&[2, 6]), 3, None, Some(&f32s(&[3])), 1e-5).map(drop),
        Argument,
        &["group_norm", "`bias`", "[6], got [3]"],
    ),
    (
        "batch_norm: one value",
        || batch_norm(&f32s(&[1, 3]), (&f32s(&[3]), &f32s(&[3])), None, None, 0.1, 1e-5).map(drop),
        Argument,
        &["batch_norm", "`x`", "at least two values per channel", "[1, 3]"],
    ),
    (
        "batch_norm: running mean dtype",
        || {
            let half = zeros(&[3], DType::F16);
            batch_norm(&zeros(&[2, 3], DType::F16), (&half, &half), None, None, 0.1, 1e-5).map(drop)
        },
        Kind::DType,
        &["batch_norm", "`running_mean`", "f16", "F32"],
    ),
    (
        "batch_norm_inference: running variance",
        || batch_norm_inference(&f32s(&[2, 3]), (&f32s(&[3]), &f32s(&[2])), None, None, 1e-5).map(drop),
        Argument,
        &["batch_norm_inference", "`running_var`", "[3], got [2]"],
    ),
    (
        "batch_norm_backward: gradient",
        || batch_norm_backward(&f32s(&[2, 3, 1]), &f32s(&[2, 3]), None, 1e-5).map(drop),
        Argument,
        &["batch_norm_backward", "`grad`", "[2, 3], got [2, 3, 1]"],
    ),
    ("rms_norm: scalar", || rms_norm(&f32s(&[]), None, 1e-5).map(drop), Argument, &["rms_norm", "`x`", "scalar"]),
    ("rms_norm: dtype", || rms_norm(&zeros(&[2], DType::I8), None, 1e-5).map(drop), Kind::DType, &["rms_norm", "i8"]),
    (
        "rms_norm: weight",
        || rms_norm(&f32s(&[4, 3]), Some(&f32s(&[4])), 1e-5).map(drop),
        Argument,
        &["rms_norm", "`weight`", "[4, 3], got [4]"],
    ),
    (
        "rms_norm: scalar weight",
        || rms_norm(&f32s(&[3]), Some(&f32s(&[])), 1e-5).map(drop),
        Argument,
        &["rms_norm", "`weight`", "got []"],
    ),
    (
        "layer_norm: weight dtype",
        || layer_norm(&zeros(&[3], DType::BF16), Some(&f32s(&[3])), None, 1e-5).map(drop),
        Kind::DType,
        &["layer_norm", "`weight`", "f32", "BF16"],
    ),
    (
        "layer_norm: bias of other axes",
        || layer_norm(&f32s(&[2, 3]), Some(&f32s(&[3])), Some(&f32s(&[2, 3])), 1e-5).map(drop),
        Argument,
        &["layer_norm", "`bias`", "[3], got [2, 3]"],
    ),
    (
        "layer_norm: output",
        || layer_norm_into(&f32s(&[2, 3]), None, None, 1e-5, &mut f32s(&[3, 2])),
        Argument,
        &["layer_norm", "`out`", "[2, 3], got [3, 2]"],
    ),
    (
        "add_rms_norm: residual",
        || add_rms_norm(&f32s(&[2, 3]), &f32s(&[3]), None, 1e-5).map(drop),
        Argument,
        &["add_rms_norm", "`residual`", "[2, 3], got [3]"],
    ),
    (
        "add_layer_norm: residual dtype",
        || add_layer_norm(&f32s(&[2]), &zeros(&[2], DType::F16), None, None, 1e-5).map(drop),
        Kind::DType,
        &["add_layer_norm", "`residual`", "f16", "F32"],
    ),
    (
        "layer_norm_backward: gradient",
        || layer_norm_backward(&f32s(&[2, 4]), &f32s(&[2, 3]), None, 1e-5).map(drop),
        Argument,
        &["layer_norm_backward", "`grad`", "[2, 3], got [2, 4]"],
    ),
    (
        "rms_norm_backward: weight",
        || rms_norm_backward(&f32s(&[2, 3]), &f32s(&[2, 3]), Some(&f32s(&[2])), 1e-5).map(drop),
        Argument,
        &["rms_norm_backward", "`weight`", "[2, 3], got [2]"],
    ),
    (
        "rms_norm_backward: second output",
        || {
            let (x, weight) = (f32s(&[2, 3]), f32s(&[3]));
            rms_norm_backward_into(&x, &x, Some(&weight), 1e-5, &mut f32s(&[2, 3]), &mut f32s(&[4]))
        },
        Argument,
        &["rms_norm_backward", "`out`", "[3], got [4]"],
    ),
];

pub const LINALG: &[Row] = &[
    (
        "matmul: inner extents",
        || matmul(&f32s(&[2, 3]), &f32s(&[2, 3])).map(drop),
        Argument,
        &["matmul", "`b`", "3 elements", "got [2, 3]"],
    ),
    ("matmul: vector lengths", || matmul(&f32s(&[2]), &f32s(&[3])).map(drop), Argument, &["matmul", "`b`", "got [3]"]),
    ("matmul: scalar", || matmul(&f32s(&[]), &f32s(&[3])).map(drop), Argument, &["matmul", "`a`", "one axis"]),
    ("matmul: scalar on the right", || matmul(&f32s(&[3]), &f32s(&[])).map(drop), Argument, &["matmul", "`b`"]),
    (
        "matmul: batches",
        || matmul(&f32s(&[2, 3, 4]), &f32s(&[3, 4, 5])).map(drop),
        Argument,
        &["matmul", "`b`", "leading extents", "[2, 3, 4] and [3, 4, 5]"],
    ),
    ("matmul: dtype", || matmul(&zeros(&[2, 2], DType::I32), &f32s(&[2, 2])).map(drop), Kind::DType, &["`a`", "i32"]),
    (
        "matmul: dtypes",
        || matmul(&f32s(&[2, 2]), &zeros(&[2, 2], DType::BF16)).map(drop),
        Kind::DType,
        &["matmul", "`b`", "bf16", "F32"],
    ),
    (
        "matmul: output of i8",
        || matmul_into(&zeros(&[2, 2], DType::I8), &zeros(&[2, 2], DType::I8), &mut zeros(&[2, 2], DType::I8)),
        Kind::DType,
        &["matmul", "`out`", "i8", "I32"],
    ),
    (
        "matmul: output shape",
        || matmul_into(&f32s(&[2, 3]), &f32s(&[3]), &mut f32s(&[2, 1])),
        Argument,
        &["matmul", "`out`", "[2], got [2, 1]"],
    ),
    (
        "matmul_with: transposed",
        || {
            let params = MatmulParams { transpose_b: true, ..MatmulParams::default() };
            matmul_with(&f32s(&[2, 3]), &f32s(&[3, 2]), params).map(drop)
        },
        Argument,
        &["matmul", "`b`", "got [3, 2]"],
    ),
    (
        "matmul_with: factor of integers",
        || {
            let params = MatmulParams { alpha: 0.5, ..MatmulParams::default() };
            matmul_with(&zeros(&[2, 2], DType::I8), &zeros(&[2, 2], DType::I8), params).map(drop)
        },
        Argument,
        &["matmul", "`alpha`", "got 0.5"],
    ),
    ("matvec: vector", || matvec(&f32s(&[3]), &f32s(&[3])).map(drop), Argument, &["matvec", "`a`", "a matrix"]),
    ("matvec: lengths", || matvec(&f32s(&[2, 3]), &f32s(&[2])).map(drop), Argument, &["matvec", "`x`", "got [2]"]),
    (
        "matvec: output",
        || matvec_into(&f32s(&[2, 3]), &f32s(&[3]), &mut f32s(&[3])),
        Argument,
        &["matvec", "`out`", "[2], got [3]"],
    ),
    (
        "outer_product: matrix",
        || outer_product(&f32s(&[2]), &f32s(&[2, 1])).map(drop),
        Argument,
        &["outer_product", "`y`", "a vector"],
    ),
    (
        "outer_product: dtype",
        || outer_product(&zeros(&[2], DType::Bool), &f32s(&[2])).map(drop),
        Kind::DType,
        &["outer_product", "`x`", "bool"],
    ),
    (
        "outer_product: output",
        || outer_product_into(&f32s(&[2]), &f32s(&[3]), &mut f32s(&[3, 2])),
        Argument,
        &["outer_product", "`out`", "[2, 3], got [3, 2]"],
    ),
];
