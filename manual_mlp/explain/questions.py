"""The six questions of a reader, and their answers in short."""

# What a reader of a textbook asks: the question, its answer, and the steps that show it.
QUESTIONS = (
    (
        "How do the derivatives by B and W turn into an entrywise product?",
        "f works entry by entry, so the Jacobian is diagonal, and a row times a diagonal matrix is an entrywise "
        "product. With W the same diagonal occurs, once for each input.",
        (3, 4),
    ),
    (
        "Why does every derivative have its parameter's shape?",
        "J is one number. So there is one derivative for each entry, and it is written where the entry stands.",
        (0,),
    ),
    (
        "How does `∂Y/∂W` result in the transpose of H?",
        "It does not. It is an array with three indices. When `∂J/∂Y` is multiplied in, `Hₖ δₗ` is left, and `Hᵀ` is "
        "H stood up, so that k counts rows.",
        (4, 6),
    ),
    (
        "Why is that a matrix product with `∂J/∂Y`?",
        "It is one with `δ = ∂J/∂Y ⊙ f′(Z)`. Each row of a batch gives an outer product, and a matrix product adds "
        "them up.",
        (4, 5),
    ),
    (
        "Why does the chain rule sum over all outputs, and is that sum a dot product?",
        "A knob may move all outputs, and J feels each. And yes: of `∂J/∂Y` with the derivatives of Y by the knob.",
        (2, 8),
    ),
    (
        "What are the `δᵢₖ` in the proof?",
        "Entries of the identity matrix: 1 where the two letters are the same number, else 0. They remove all other "
        "terms from a sum.",
        (1, 3),
    ),
)
