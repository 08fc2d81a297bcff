"""Sets of operators that several modules ask for, by name."""

from __future__ import annotations

# Operators that broadcast their operands, so that an operand needs no expanding.
BROADCASTING = {
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul", "Or",
    "Pow", "PRelu", "Sub", "Sum", "Where",
}  # fmt: skip
# Operators that can do their work with one more axis in front.
ELEMENTWISE = BROADCASTING | {
    "Abs", "Cast", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh",
}  # fmt: skip
WITH_AXIS = {"Concat", "LogSoftmax", "Softmax"}
