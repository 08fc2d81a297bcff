"""Build metadata of s2d-runtime: a deployed device needs neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="s2d-runtime",
    version="0.1.0",
    description="Runs multi-stage ONNX models that stop at the first confident answer; needs numpy and onnxruntime.",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["onnx", "onnxruntime", "cnn", "early exit", "dynamic inference", "serving", "edge"],
    # The code has no public address yet; the method has.
    project_urls={"Paper (S2DNAS)": "https://arxiv.org/abs/1911.07033"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
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
    packages=find_packages(include=["s2d_runtime", "s2d_runtime.*"]),
    package_data={"s2d_runtime": ["py.typed"]},
    # The oldest versions that tests/runtime passes with.
    install_requires=["numpy>=1.26", "onnxruntime>=1.17"],
    # One environment per serving stack: two of them in one make pip take old releases without a word.
    extras_require={
        "images": ["pillow>=12.3"],
        "http": ["prometheus-client>=0.20", "starlette>=0.40", "uvicorn>=0.30"],
        "kserve": ["kserve>=0.21", "prometheus-client>=0.20"],
        "mlserver": ["mlserver>=1.7.1", "prometheus-client>=0.20"],
        "ray": ["ray[serve]>=2.50"],
    },
)
