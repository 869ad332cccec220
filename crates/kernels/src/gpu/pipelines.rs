//! Compiled shaders and binding layouts, made on first use and kept.

use std::collections::HashMap;
use std::sync::Arc;

use files::{Format, Result};

use super::device::Device;
use super::source::{CONSTANTS_MAX, Kernel, Variant, WEIGHTS_MAX, wgsl};

/// Most bytes of parameters of a dispatch; every Vulkan and Metal device has them.
pub(super) const IMMEDIATE_BYTES_MAX: u32 = 128;

/// A compiled shader.
pub(super) struct Pipeline {
    pub(super) name: &'static str,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Pipelines with equal layouts share bind groups.
    pub(super) layout_id: usize,
}

/// All pipelines of a device.
#[derive(Default)]
pub(super) struct Pipelines {
    compiled: HashMap<Variant, Arc<Pipeline>>,
    layouts: Vec<(String, wgpu::BindGroupLayout)>,
}

/// The variant of `kernel` for formats and constants.
pub(super) fn variant(kernel: &Kernel, formats: &[Format], constants: &[u32]) -> Variant {
    let mut all = Variant { name: kernel.name, formats: [None; WEIGHTS_MAX], constants: [0; CONSTANTS_MAX] };
    for (slot, format) in all.formats.iter_mut().zip(formats) {
        *slot = Some(*format);
    }
    all.constants[..constants.len()].copy_from_slice(constants);
    all
}

impl Pipelines {
    /// The pipeline of a variant, compiled if it is new.
    pub(super) fn get(
        &mut self,
        device: &Device,
        kernel: &Kernel,
        variant: Variant,
    ) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.compiled.get(&variant) {
            return Ok(pipeline.clone());
        }
        let mut access = kernel.access.to_string();
        for format in variant.formats.iter().flatten() {
            access.extend(std::iter::repeat_n('r', format.parts()));
        }
        let layout_id = self.layout(device, &access);
        let layout = self.layouts[layout_id].1.clone();
        let source = wgsl(kernel, &variant, device.subgroups);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // SAFETY: the shaders are ours; every index in them is bounded by shapes that `check` has compared with the
        // buffers, or by tables that this module writes, and buffers are padded for loads of whole words.
        let module = unsafe {
            device.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let pipeline_layout = device.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: IMMEDIATE_BYTES_MAX,
        });
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        device.check().map_err(|e| e.context(format!("shader {}", kernel.name)))?;
        let pipeline = Arc::new(Pipeline { name: kernel.name, pipeline, layout, layout_id });
        self.compiled.insert(variant, pipeline.clone());
        Ok(pipeline)
    }

    /// The layout for buffers used as `access` says; its index.
    fn layout(&mut self, device: &Device, access: &str) -> usize {
        if let Some(id) = self.layouts.iter().position(|(known, _)| known == access) {
            return id;
        }
        let entries: Vec<_> = access
            .chars()
            .enumerate()
            .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: access == 'r' },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = device.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(access),
            entries: &entries,
        });
        self.layouts.push((access.to_string(), layout));
        self.layouts.len() - 1
    }
}
