"""Build metadata of s2d-convert; the runtime for deployed devices is a package of its own in runtime/."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the oldest versions that requirements.lock installs (those of Python 3.10); older ones are untested.
REQUIRED = [
    "click>=8.5",
    "jinja2>=3.1",
    "numpy>=2.2",
    "onnx>=1.23",
    "onnx-graphsurgeon>=0.6.1",
    "onnxruntime>=1.23",
    "pillow>=12.3",
    "protobuf",  # its range is onnx's business
    "rich>=15.0",
    "s2d-runtime>=0.1.0",
    "scipy>=1.15",
    "torch>=2.13",
]
# The demo trains a model and exports it, so it also needs what torch.onnx needs.
DEMO = ["onnxscript>=0.7", "scikit-learn>=1.7"]
SERVE = ["s2d-runtime[http]>=0.1.0"]
# The measuring stand. torch-pruning asks for torch and numpy only; `make bench` installs it without dependencies.
BENCH = ["matplotlib>=3.10", "torch-pruning>=1.6"]
# Everything a user may want on one machine; the larger serving stacks have environments of their own (runtime/setup.py).
ALL = [*DEMO, *SERVE, "matplotlib>=3.10"]
DEV = [
    *ALL,
    "build>=1.6",
    "hypothesis>=6.168",
    "mypy>=2.4",
    "promql-parser>=0.11",
    "pytest>=9.2",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "pyyaml>=6.0",
    "ruff>=0.17",
    "twine>=7.0",
]

setup(
    name="s2d-convert",
    version="0.1.0",
    description="Turns a static CNN classifier (ONNX) into stages that stop early on easy images.",
    long_description=(Path(__file__).parent / "docs" / "package.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["onnx", "onnxruntime", "cnn", "early exit", "dynamic inference", "model compression", "int8", "edge"],
    # The code has no public address yet; the method has.
    project_urls={"Paper (S2DNAS)": "https://arxiv.org/abs/1911.07033"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["s2d_convert", "s2d_convert.*"]),
    package_data={"s2d_convert": ["py.typed"], "s2d_convert.exporting.report": ["*.jinja"]},
    install_requires=REQUIRED,
    extras_require={"all": ALL, "bench": BENCH, "demo": DEMO, "dev": DEV, "serve": SERVE},
    entry_points={
        "console_scripts": [
            "s2d-convert=s2d_convert.cli.entry:convert_main",
            "s2d=s2d_convert.cli.entry:main",
        ]
    },
)
