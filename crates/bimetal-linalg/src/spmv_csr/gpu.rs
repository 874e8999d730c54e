//! The product on the GPU: some units for each row, by the mean length; long rows are put down in a list by those, and a
//! second launch gives each of their parts a cube.

// The `#[cube]` macro adds a public module without documentation beside each function.
#![allow(missing_docs)]

use super::Dims;
use crate::blocks::elems;
use crate::qr::gpu::columns::not_a_number;
use bimetal_core::gpu::kernel::address_type;
use bimetal_core::{Gpu, Result, Tensor};
use cubecl::ir::features::AtomicUsage;
use cubecl::ir::{ElemType, Type, UIntKind};
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube.
const UNITS: usize = 128;

/// Units of a row for means up to so many elements, and the elements of a part of a long one.
const FORMS: [(usize, Form); 3] = [
    (8, Form { lanes: 4, part: 1024 }),
    (32, Form { lanes: 16, part: 1024 }),
    (usize::MAX, Form { lanes: 64, part: 4096 }),
];

/// How rows are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    /// Units of a row.
    lanes: usize,
    /// Rows of more elements than this are shared by cubes.
    part: usize,
}

pub(super) fn spmv_csr(gpu: &Gpu, dims: Dims, inputs: &[&Tensor], outputs: &mut [&mut Tensor]) -> Result<()> {
    let Dims { m, n, count } = dims;
    let [pointers, columns, values, x] = inputs else { unreachable!("four inputs") };
    let [y, status] = outputs else { unreachable!("two outputs") };
    let mean = count.div_ceil(m.max(1));
    let form = FORMS.iter().find(|(most, _)| mean <= *most).map_or(FORMS[2].1, |(_, form)| *form);
    let word = Type::atomic(ElemType::UInt(UIntKind::U32));
    let adds = gpu.client().properties().atomic_type_usage(word).contains(AtomicUsage::Add);
    // A row of more than a part has at most twice as many parts as its length has.
    let places = if adds && count > form.part { 2 * count / form.part } else { 0 };
    let (taken, list) = (gpu.alloc(4), gpu.alloc(places * 8));
    let elems = elems(gpu, values.dtype())?;
    let job = Job { gpu, dims, form, places, address: address_type(count.max(m).max(n)), elems, taken, list };
    // SAFETY: the buffers have these lengths; what a kernel reads by pointers and columns it has compared with them.
    unsafe {
        begin::launch_unchecked(
            gpu.client(),
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(1),
            job.address,
            words(pointers, m + 1)?,
            status.gpu_arg()?,
            BufferArg::from_raw_parts(job.taken.clone(), 1),
            m,
            count as u32,
        );
        if m == 0 {
            return Ok(());
        }
        short_rows::launch_unchecked(
            gpu.client(),
            gpu.cubes(m.div_ceil(UNITS / form.lanes)),
            CubeDim::new_1d(UNITS as u32),
            job.address,
            words(pointers, m + 1)?,
            words(columns, count)?,
            values.gpu_arg()?,
            x.gpu_arg()?,
            y.gpu_arg()?,
            status.gpu_arg()?,
            BufferArg::from_raw_parts(job.taken.clone(), 1),
            BufferArg::from_raw_parts(job.list.clone(), (2 * places).max(1)),
            m,
            n as u32,
            count as u32,
            places as u32,
            form,
            elems,
        );
    }
    if places == 0 { Ok(()) } else { job.long_rows([pointers, columns, values, x], y, status) }
}

/// An i32 or u32 tensor as words.
fn words(tensor: &Tensor, length: usize) -> Result<BufferArg> {
    // SAFETY: callers give the tensor's number of elements.
    Ok(unsafe { BufferArg::from_raw_parts(tensor.gpu_handle()?, length) })
}

struct Job<'a> {
    gpu: &'a Gpu,
    dims: Dims,
    form: Form,
    /// Parts of long rows for which there is room.
    places: usize,
    address: AddressType,
    elems: [ElemType; 2],
    /// How many places are taken, and for each its row and which part of it.
    taken: Handle,
    list: Handle,
}

impl Job<'_> {
    /// Rows that the first launch has put down.
    fn long_rows(&self, inputs: [&Tensor; 4], y: &Tensor, status: &Tensor) -> Result<()> {
        let Self { gpu, dims: Dims { m, n, count }, places, .. } = *self;
        let [pointers, columns, values, x] = inputs;
        let sums = gpu.alloc(places * crate::blocks::working(values.dtype()).size());
        // SAFETY: as for the first launch.
        unsafe {
            parts::launch_unchecked(
                gpu.client(),
                gpu.cubes(places),
                CubeDim::new_1d(UNITS as u32),
                self.address,
                words(pointers, m + 1)?,
                words(columns, count)?,
                values.gpu_arg()?,
                x.gpu_arg()?,
                status.gpu_arg()?,
                BufferArg::from_raw_parts(self.taken.clone(), 1),
                BufferArg::from_raw_parts(self.list.clone(), 2 * places),
                BufferArg::from_raw_parts(sums.clone(), places),
                m,
                n as u32,
                count as u32,
                places as u32,
                self.form,
                self.elems,
            );
            join::launch_unchecked(
                gpu.client(),
                gpu.cubes(places),
                CubeDim::new_1d(UNITS as u32),
                self.address,
                words(pointers, m + 1)?,
                y.gpu_arg()?,
                BufferArg::from_raw_parts(self.taken.clone(), 1),
                BufferArg::from_raw_parts(self.list.clone(), 2 * places),
                BufferArg::from_raw_parts(sums, places),
                m,
                places as u32,
                self.form,
                self.elems,
            );
        }
        Ok(())
    }
}

/// Whether the first and the last pointer are what they must be; no places of the list are taken.
#[cube(launch_unchecked, address_type = "dynamic")]
fn begin(pointers: &[u32], status: &mut [i32], taken: &mut [u32], m: usize, count: u32) {
    status[0] = select(pointers[0] != 0u32 || pointers[m] != count, 1i32, 0i32);
    taken[0] = 0u32;
}

/// The sum of elements `first`, `first + step`, … below `end`; NaN, and a status, for a column that does not exist.
#[cube]
fn terms<I: Float, A: Float>(
    columns: &[u32],
    values: &[I],
    x: &[I],
    status: &mut [i32],
    first: u32,
    end: u32,
    n: u32,
    #[comptime] step: u32,
) -> A {
    let mut sum = A::new(0.0);
    let mut wrong = false;
    let mut e = first;
    while e < end {
        let column = columns[e as usize];
        if column < n {
            sum += A::cast_from(values[e as usize]) * A::cast_from(x[column as usize]);
        } else {
            wrong = true;
        }
        e += step;
    }
    if wrong {
        status[0] = 1i32;
    }
    select(wrong, not_a_number::<A>(), sum)
}

/// Adds up the values of each group of units; the first unit of the group has the sum.
#[cube]
fn group_sum<A: Float>(value: A, memory: &mut Shared<[A]>, #[comptime] group: usize) -> A {
    let unit = UNIT_POS as usize;
    memory[unit] = value;
    let mut half = comptime!(group / 2).runtime();
    while half > 0 {
        sync_cube();
        if unit % group < half {
            memory[unit] = memory[unit] + memory[unit + half];
        }
        half /= 2;
    }
    memory[unit]
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn short_rows<I: Float, A: Float>(
    pointers: &[u32],
    columns: &[u32],
    values: &[I],
    x: &[I],
    y: &mut [I],
    status: &mut [i32],
    taken: &mut [Atomic<u32>],
    list: &mut [u32],
    m: usize,
    n: u32,
    count: u32,
    places: u32,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut memory = Shared::<[A]>::new_slice(UNITS);
    let mut first_places = Shared::<[u32]>::new_slice(comptime!(UNITS / form.lanes));
    let unit = UNIT_POS as usize;
    let lane = unit % form.lanes;
    let row = CUBE_POS * comptime!(UNITS / form.lanes) + unit / form.lanes;
    let active = row < m;
    let at = min(row, m - 1);
    let (start, end) = (pointers[at], pointers[at + 1]);
    let right = start <= end && end <= count;
    let length = select(right && active, end - start, 0u32);
    let long = length > comptime!(form.part as u32);
    let wanted = length.div_ceil(comptime!(form.part as u32));
    if lane == 0 {
        let mut place = places;
        if long && places > 0u32 {
            place = taken[0].fetch_add(wanted);
        }
        first_places[unit / form.lanes] = place;
        if active && !right {
            status[0] = 1i32;
        }
    }
    sync_cube();
    let place = first_places[unit / form.lanes];
    // Pointers that fall may make more parts than there are places: those rows stay here.
    let deferred = long && place < places && wanted <= places - min(place, places);
    let mut sum = A::new(0.0);
    if deferred {
        let mut part = lane as u32;
        while part < wanted {
            list[2 * (place + part) as usize] = row as u32;
            list[2 * (place + part) as usize + 1] = part;
            part += comptime!(form.lanes as u32);
        }
    } else if long && place < places {
        // Places that were taken and are not used.
        let mut free = place + lane as u32;
        while free < places {
            list[2 * free as usize + 1] = 0xffff_ffffu32;
            free += comptime!(form.lanes as u32);
        }
    }
    if !deferred && length > 0u32 {
        sum = terms::<I, A>(columns, values, x, status, start + lane as u32, end, n, comptime!(form.lanes as u32));
    }
    let total = group_sum::<A>(sum, &mut memory, form.lanes);
    if lane == 0 && active && !deferred {
        y[row] = I::cast_from(select(right, total, not_a_number::<A>()));
    }
}

/// A cube for each part of a long row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn parts<I: Float, A: Float>(
    pointers: &[u32],
    columns: &[u32],
    values: &[I],
    x: &[I],
    status: &mut [i32],
    taken: &[u32],
    list: &[u32],
    sums: &mut [A],
    m: usize,
    n: u32,
    count: u32,
    places: u32,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut memory = Shared::<[A]>::new_slice(UNITS);
    let place = CUBE_POS as u32;
    let at = min(place, places - 1) as usize;
    let mut sum = A::new(0.0);
    let part = list[2 * at + 1];
    let used = place < min(taken[0], places) && part != 0xffff_ffffu32;
    if used {
        let row = min(list[2 * at] as usize, m - 1);
        let size = comptime!(form.part as u32);
        let first = pointers[row] + part * size;
        let end = min(min(first + size, pointers[row + 1]), count);
        sum = terms::<I, A>(columns, values, x, status, first + UNIT_POS, end, n, comptime!(UNITS as u32));
    }
    let total = group_sum::<A>(sum, &mut memory, UNITS);
    if UNIT_POS == 0 && used {
        sums[at] = total;
    }
}

/// The cube of a long row's first part adds up all of them.
#[cube(launch_unchecked, address_type = "dynamic")]
fn join<I: Float, A: Float>(
    pointers: &[u32],
    y: &mut [I],
    taken: &[u32],
    list: &[u32],
    sums: &[A],
    m: usize,
    places: u32,
    #[comptime] form: Form,
    #[define(I, A)] _elems: [ElemType; 2],
) {
    let mut memory = Shared::<[A]>::new_slice(UNITS);
    let place = CUBE_POS as u32;
    let at = min(place, places - 1) as usize;
    let first = place < min(taken[0], places) && list[2 * at + 1] == 0u32;
    let mut sum = A::new(0.0);
    let mut row = 0usize;
    if first {
        row = min(list[2 * at] as usize, m - 1);
        let all = (pointers[row + 1] - pointers[row]).div_ceil(comptime!(form.part as u32));
        let all = min(all, places - place);
        let mut part = UNIT_POS;
        while part < all {
            sum += sums[at + part as usize];
            part += comptime!(UNITS as u32);
        }
    }
    let total = group_sum::<A>(sum, &mut memory, UNITS);
    if UNIT_POS == 0 && first {
        y[row] = I::cast_from(total);
    }
}
