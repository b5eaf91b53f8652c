"""Answers, ground truths and verdicts for `reward=math`: data of `test_math.py`.

Written by hand. `KNOWN_ERRORS` are right answers that math-verify takes for wrong.
"""

# ground truth, right answers, wrong answers
CASES = (
    (
        "42",
        (
            "42",
            r"\boxed{42}",
            "The answer is 42.",
            "$42$",
            "so we get $x = 42$",
            "42.0",
            r"\boxed{ 42 }",
            "= 42",
            r"\boxed{+42}",
            r"answer: \boxed{\text{42}}",
        ),
        (
            "43",
            r"\boxed{-42}",
            r"\boxed{4 2 1}",
            "",
            "no idea",
            r"\boxed{}",
            r"\boxed{420}",
            r"\boxed{4.2}",
            r"\boxed{42}, no: \boxed{43}",
            r"The answer is 42 or 43, so \boxed{43}",
            r"\boxed{\{42,43\}}",
            r"\boxed{42x}",
        ),
    ),
    (
        "1/2",
        (
            r"\boxed{\frac12}",
            r"\boxed{\frac{1}{2}}",
            r"\boxed{0.5}",
            r"\boxed{1/2}",
            r"\boxed{\dfrac{1}{2}}",
            r"\boxed{\tfrac12}",
            r"\boxed{2/4}",
            r"\boxed{.5}",
            r"\boxed{\frac{2}{4}}",
            r"$\frac{1}{2}$",
            "1/2",
        ),
        (
            r"\boxed{2}",
            r"\boxed{\frac{1}{3}}",
            r"\boxed{0.51}",
            r"\boxed{-\frac12}",
            r"\boxed{1:3}",
            r"\boxed{12}",
            r"\boxed{\frac{2}{1}}",
        ),
    ),
    (
        "-3",
        (
            r"\boxed{-3}",
            "-3",
            "$-3$",
            r"\boxed{-3.0}",
            r"\boxed{-6/2}",
            r"\boxed{- 3}",
        ),
        (
            r"\boxed{3}",
            "3",
            r"\boxed{-\frac13}",
            r"\boxed{+3}",
        ),
    ),
    (
        r"\sqrt{2}",
        (
            r"\boxed{\sqrt{2}}",
            r"\boxed{\sqrt2}",
            r"\boxed{2^{1/2}}",
            r"\boxed{\frac{2}{\sqrt{2}}}",
            r"$\sqrt{2}$",
        ),
        (
            r"\boxed{2}",
            r"\boxed{\sqrt{3}}",
            r"\boxed{1.41}",
            r"\boxed{-\sqrt{2}}",
            r"\boxed{2\sqrt{2}}",
        ),
    ),
    (
        r"2\pi",
        (
            r"\boxed{2\pi}",
            r"\boxed{2 \pi}",
            r"\boxed{\pi \cdot 2}",
            r"\boxed{\pi + \pi}",
        ),
        (
            r"\boxed{\pi}",
            r"\boxed{2}",
            r"\boxed{\pi^2}",
            r"\boxed{2\pi r}",
            r"\boxed{6.28}",
        ),
    ),
    (
        "1000",
        (
            r"\boxed{1000}",
            r"\boxed{1,000}",
            r"\boxed{10^3}",
            r"\boxed{1{,}000}",
            r"\boxed{1000.0}",
            r"\boxed{\$1000}",
            r"\boxed{1000 \text{ dollars}}",
        ),
        (
            r"\boxed{100}",
            r"\boxed{10000}",
            r"\boxed{1}",
            r"\boxed{1.000}",
            r"\boxed{10^4}",
        ),
    ),
    (
        "(1,2)",
        (
            r"\boxed{(1,2)}",
            r"\boxed{(1, 2)}",
            r"\boxed{\left(1,2\right)}",
        ),
        (
            r"\boxed{(2,1)}",
            r"\boxed{1}",
            r"\boxed{(1,3)}",
            r"\boxed{(1,2,3)}",
        ),
    ),
    (
        r"\{1,2\}",
        (
            r"\boxed{\{1,2\}}",
            r"\boxed{\{2,1\}}",
            r"\boxed{1,2}",
            r"\boxed{1, 2}",
            r"\boxed{1 \text{ and } 2}",
        ),
        (
            r"\boxed{\{1\}}",
            r"\boxed{\{1,3\}}",
            r"\boxed{1}",
            r"\boxed{\{1,2,3\}}",
        ),
    ),
    (
        "[0,1)",
        (
            r"\boxed{[0,1)}",
            r"\boxed{[0, 1)}",
        ),
        (
            r"\boxed{(0,1)}",
            r"\boxed{[0,1]}",
            r"\boxed{[0,2)}",
            r"\boxed{0}",
        ),
    ),
    (
        "x^2+2x+1",
        (
            r"\boxed{x^2+2x+1}",
            r"\boxed{(x+1)^2}",
            r"\boxed{1+2x+x^2}",
            r"\boxed{x(x+2)+1}",
        ),
        (
            r"\boxed{x^2+2x}",
            r"\boxed{x^2+2y+1}",
            r"\boxed{(x-1)^2}",
            r"\boxed{1}",
        ),
    ),
    (
        "x=3",
        (
            r"\boxed{3}",
            r"\boxed{x=3}",
            r"\boxed{x = 3}",
        ),
        (
            r"\boxed{x=4}",
            r"\boxed{4}",
            r"\boxed{x=-3}",
        ),
    ),
    (
        r"25\%",
        (r"\boxed{25\%}",),
        (
            r"\boxed{26\%}",
            r"\boxed{0.025}",
            r"\boxed{75\%}",
        ),
    ),
    (
        "3.14",
        (
            r"\boxed{3.14}",
            r"\boxed{3.140}",
            r"\boxed{\frac{314}{100}}",
        ),
        (
            r"\boxed{3.15}",
            r"\boxed{3}",
            r"\boxed{\pi}",
            r"\boxed{31.4}",
            r"\boxed{3.1}",
        ),
    ),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        (
            r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}",
            r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}",
            r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}",
        ),
        (
            r"\boxed{\begin{pmatrix}1&2\\4&3\end{pmatrix}}",
            r"\boxed{\begin{pmatrix}1&2\end{pmatrix}}",
            r"\boxed{1}",
        ),
    ),
    (
        "2^{10}",
        (
            r"\boxed{1024}",
            r"\boxed{2^{10}}",
            r"\boxed{4^5}",
        ),
        (
            r"\boxed{210}",
            r"\boxed{2^{11}}",
            r"\boxed{20}",
        ),
    ),
    (
        "1/2^99",
        (
            r"\boxed{\frac{1}{2^{99}}}",
            r"\boxed{2^{-99}}",
        ),
        (
            r"\boxed{\frac{1}{2^{98}}}",
            r"\boxed{0}",
            r"\boxed{\frac{1}{2^{100}}}",
            r"\boxed{1}",
        ),
    ),
    (
        "0.0000001",
        (
            r"\boxed{0.0000001}",
            r"\boxed{10^{-7}}",
            r"\boxed{1 \times 10^{-7}}",
        ),
        (
            r"\boxed{0.0000002}",
            r"\boxed{0}",
            r"\boxed{0.000001}",
            r"\boxed{10^{-8}}",
        ),
    ),
    (
        "1/3",
        (
            r"\boxed{\frac13}",
            r"\boxed{0.333333}",
            r"\boxed{0.33333333}",
        ),
        (
            r"\boxed{0.3}",
            r"\boxed{0.33}",
            r"\boxed{3}",
            r"\boxed{0.334}",
        ),
    ),
    (
        r"3\frac{1}{2}",
        (
            r"\boxed{3\frac{1}{2}}",
            r"\boxed{3.5}",
            r"\boxed{\frac{7}{2}}",
        ),
        (
            r"\boxed{\frac{3}{2}}",
            r"\boxed{31/2}",
            r"\boxed{1.5}",
        ),
    ),
    (
        "10!",
        (
            r"\boxed{3628800}",
            r"\boxed{10!}",
        ),
        (
            r"\boxed{10}",
            r"\boxed{9!}",
        ),
    ),
    (
        r"\infty",
        (
            r"\boxed{\infty}",
            r"\boxed{+\infty}",
        ),
        (
            r"\boxed{-\infty}",
            r"\boxed{0}",
        ),
    ),
    (
        r"60^\circ",
        (
            r"\boxed{60^\circ}",
            r"\boxed{60}",
            r"\boxed{60^{\circ}}",
            r"\boxed{60 \text{ degrees}}",
        ),
        (
            r"\boxed{30^\circ}",
            r"\boxed{6}",
            r"\boxed{120}",
        ),
    ),
    (
        r"5\text{ cm}",
        (
            r"\boxed{5\text{ cm}}",
            r"\boxed{5}",
            r"\boxed{5 \text{ cm}}",
        ),
        (
            r"\boxed{6\text{ cm}}",
            r"\boxed{50}",
        ),
    ),
    (
        "a+b",
        (
            r"\boxed{a+b}",
            r"\boxed{b+a}",
        ),
        (
            r"\boxed{a-b}",
            r"\boxed{ab}",
            r"\boxed{a}",
        ),
    ),
    (
        r"\log_2 8",
        (
            r"\boxed{3}",
            r"\boxed{\log_2 8}",
        ),
        (
            r"\boxed{8}",
            r"\boxed{2}",
        ),
    ),
    (
        "i",
        (r"\boxed{i}",),
        (
            r"\boxed{-i}",
            r"\boxed{1}",
        ),
    ),
    (
        "1+2i",
        (
            r"\boxed{1+2i}",
            r"\boxed{2i+1}",
        ),
        (
            r"\boxed{1-2i}",
            r"\boxed{2+i}",
            r"\boxed{3}",
        ),
    ),
    (
        r"x \ge 2",
        (
            r"\boxed{x \ge 2}",
            r"\boxed{x \geq 2}",
            r"\boxed{[2,\infty)}",
        ),
        (
            r"\boxed{x > 2}",
            r"\boxed{x \le 2}",
            r"\boxed{2}",
        ),
    ),
    (
        "7/8",
        (
            r"\boxed{7/8}",
            r"\boxed{0.875}",
            r"\boxed{\frac{14}{16}}",
        ),
        (
            r"\boxed{8/7}",
            r"\boxed{0.88}",
            r"\boxed{78}",
        ),
    ),
    (
        "0",
        (
            r"\boxed{0}",
            r"\boxed{0.0}",
            r"\boxed{-0}",
            r"\boxed{\frac{0}{5}}",
        ),
        (
            r"\boxed{1}",
            r"\boxed{0.0001}",
            r"\boxed{o}",
            r"\boxed{10^{-9}}",
            r"\boxed{}",
        ),
    ),
    (
        "123456789",
        (
            r"\boxed{123456789}",
            r"\boxed{123,456,789}",
        ),
        (
            r"\boxed{123456788}",
            r"\boxed{123456780}",
            r"\boxed{1.23\times10^8}",
        ),
    ),
    (
        r"\frac{\sqrt{3}}{2}",
        (
            r"\boxed{\frac{\sqrt{3}}{2}}",
            r"\boxed{\sqrt{3}/2}",
            r"\boxed{\sqrt{\frac34}}",
        ),
        (
            r"\boxed{\frac{\sqrt{2}}{2}}",
            r"\boxed{\frac{3}{2}}",
            r"\boxed{0.87}",
        ),
    ),
)

# ground truth, right answer that scores 0
KNOWN_ERRORS = (
    ("42", r"\boxed{42.}"),
    ("1/2", r"\boxed{50\%}"),
    (r"\sqrt{2}", r"\boxed{2^{0.5}}"),
    ("1000", r"\boxed{1\,000}"),
    ("[0,1)", r"\boxed{0 \le x < 1}"),
    (r"25\%", r"\boxed{0.25}"),
    (r"25\%", r"\boxed{25}"),
    (r"25\%", r"\boxed{\frac14}"),
    ("1/3", r"\boxed{0.\overline{3}}"),
    ("7/8", r"\boxed{87.5\%}"),
    (r"\frac{\sqrt{3}}{2}", r"\boxed{\sin 60^\circ}"),
)

# ground truths that nobody can be right or wrong about
UNREADABLE = ("", " ", "N/A", "nan", "None", "null")
