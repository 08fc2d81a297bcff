"""The runtime as a package of its own: a deployed device needs neither torch nor onnx."""

from setuptools import setup

setup(
    name="s2d-runtime",
    version="0.1.0",
    description="Run multi-stage ONNX models and stop at the first confident answer",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["s2d_runtime"],
    package_data={"s2d_runtime": ["py.typed"]},
    install_requires=["numpy>=1.24", "onnxruntime>=1.17"],
)
