r"""Answers that a row's form decides: (response, ground truth, verdict), by form.

Verdicts: 1 right, 0 wrong though an answer was found, None no answer of the row's form.
"""

CHOICES = ["larger than", "equal to", "smaller than"]
NUMBERS = ["3", "4.5", "12", "1/2"]
LETTERS = ["A", "B", "C", "D", "C or D"]

# question_type=multi_choice: (choices, response, truth, verdict)
CHOICE_CASES = [
    (CHOICES, r"\boxed{B}", "equal to", 1),
    (CHOICES, r"so \boxed{\text{B}}", "equal to", 1),
    (CHOICES, r"\boxed{(B)}", "equal to", 1),
    (CHOICES, r"\boxed{(B) equal to}", "equal to", 1),
    (CHOICES, r"\boxed{\text{(B) equal to}}", "equal to", 1),
    (CHOICES, r"\boxed{equal to}", "equal to", 1),
    (CHOICES, r"\boxed{\text{Equal to}}", "equal to", 1),
    (CHOICES, r"\boxed{A}, no, \boxed{B}", "equal to", 1),
    (CHOICES, "<answer>B</answer>", "equal to", 1),
    (CHOICES, "<answer>equal to.</answer>", "equal to", 1),
    (CHOICES, "The answer is B.", "equal to", 1),
    (CHOICES, "The correct answer is (B) equal to.", "equal to", 1),
    (CHOICES, "**Answer:** B", "equal to", 1),
    (CHOICES, "Answer:\n(B)", "equal to", 1),
    (CHOICES, "the answer should be option B", "equal to", 1),
    (CHOICES, "The slope is the same.\n\nB", "equal to", 1),
    (CHOICES, "The slope is the same.\nequal to", "equal to", 1),
    (CHOICES, "b", "equal to", 1),
    (CHOICES, "B", "B", 1),  # a truth that is a letter
    (CHOICES, "equal to", "B", 1),
    (CHOICES, r"\boxed{A}", "equal to", 0),
    (CHOICES, r"\boxed{B}, no, \boxed{A}", "equal to", 0),
    (CHOICES, "The answer is not B", "equal to", None),
    (CHOICES, r"\boxed{A \text{ or } B}", "equal to", None),
    (CHOICES, "(A) or (B)", "larger than", None),
    (CHOICES, r"\boxed{AB}", "larger than", None),
    (CHOICES, r"\boxed{D}", "larger than", None),  # there is no fourth choice
    (CHOICES, "A better look shows that they are the same", "larger than", None),
    (CHOICES, "equal", "equal to", None),  # the authors take the most similar choice
    (CHOICES, "", "equal to", None),
    (NUMBERS, r"\boxed{12}", "12", 1),
    (NUMBERS, r"\boxed{12.0}", "12", 1),
    (NUMBERS, r"\boxed{$12$}", "12", 1),
    (NUMBERS, r"\boxed{C}", "12", 1),
    (NUMBERS, r"\boxed{\frac{1}{2}}", "1/2", 1),
    (NUMBERS, r"\boxed{0.5}", "1/2", 1),
    (NUMBERS, r"\boxed{3}", "12", 0),
    (NUMBERS, r"\boxed{7}", "12", None),
    (NUMBERS, "(B) 12", "12", 0),  # the letter counts, as in the authors' script
    (LETTERS, r"\boxed{A}", "A", 1),
    (LETTERS, r"\boxed{C or D}", "C or D", 1),
    (LETTERS, r"\boxed{E}", "C or D", 1),
    (LETTERS, r"\boxed{C}", "C or D", 0),
    ([], r"\boxed{D}", "D", 1),  # MathVerse's choices stand in the question
    ([], r"\boxed{D: 40}", "D", 1),
    ([], r"\boxed{C}", "D", 0),
]

# answer_type=integer
INTEGER_CASES = [
    (r"\boxed{14}", "14", 1),
    ("14", "14", 1),
    ("14.0", "14", 1),
    (r"\boxed{14\text{ cm}}", "14", 1),
    (r"\boxed{14 \, \text{cm}^2}", "14", 1),
    (r"\boxed{L = 14}", "14", 1),
    (r"\boxed{L \approx 14}", "14", 1),
    (r"\boxed{1,400}", "1400", 1),
    (r"\boxed{-5}", "-5", 1),
    (r"\boxed{−5}", "-5", 1),
    (r"\boxed{\$14}", "14", 1),
    (r"\boxed{14\%}", "14", 1),
    (r"\boxed{14^\circ}", "14", 1),
    (r"\boxed{14^{\circ}}", "14", 1),
    (r"\boxed{\frac{28}{2}}", "14", 1),
    (r"\boxed{28/2}", "14", 1),
    ("The answer is 14.", "14", 1),
    ("The answer is 14 cm. It is long.", "14", 1),
    ("Answer: 14", "14", 1),
    ("3 + 11 = 14\nSo there are 14 of them.", "14", 1),
    (r"\boxed{14.9}", "14", 0),  # the authors' script cuts the digits off
    (r"\boxed{15}", "14", 0),
    (r"\boxed{-14}", "14", 0),
    (r"\boxed{14 \text{ or } 15}", "14", None),
    (r"\boxed{14\pi}", "14", None),
    (r"\boxed{\sqrt{14}}", "14", None),
    (r"\boxed{2^{14}}", "14", None),
    ("14 and 15", "14", None),
    ("It rose from 3 to 14", "14", None),
    ("fourteen", "14", None),
    ("", "14", None),
]

# answer_type=float: (precision, response, truth, verdict)
FLOAT_CASES = [
    (1.0, r"\boxed{1.2}", "1.2", 1),
    (1.0, r"\boxed{1.20}", "1.2", 1),
    (1.0, r"\boxed{1.24}", "1.2", 1),
    (1.0, r"\boxed{1.26}", "1.2", 0),
    (2.0, r"\boxed{1.234}", "1.23", 1),
    (2.0, r"\boxed{1.2}", "1.20", 1),
    (2.0, r"\boxed{1.24}", "1.23", 0),
    (2.0, r"\boxed{\frac{1}{3}}", "0.33", 1),
    (2.0, r"\boxed{-.50}", "-0.5", 1),
    (1.0, r"\boxed{1.5e3}", "1500.0", 1),
    (1.0, "about 1.2 or 1.3", "1.2", None),
    (1.0, r"\boxed{\frac{1}{0}}", "1.2", None),
]

# answer_type=list
LIST_CASES = [
    (r"\boxed{[1, 2, 3]}", "[1, 2, 3]", 1),
    (r"\boxed{[1,2,3]}", "[1, 2, 3]", 1),
    (r"\boxed{\left[1.0, 2, 3\right]}", "[1, 2, 3]", 1),
    ("The final list is [1, 2, 3]", "[1, 2, 3]", 1),
    ("[0.5, 'red']", '[1/2, "Red"]', 1),
    ("[]", "[]", 1),
    ("[1, 3, 2]", "[1, 2, 3]", 0),
    ("[1, 2]", "[1, 2, 3]", 0),
    ("1, 2, 3", "[1, 2, 3]", None),
    ("[1, 2, 3] or [3, 2, 1]", "[1, 2, 3]", None),
]

# another answer type: MathVerse's and MathVision's free answers
MATHEMATICS_CASES = [
    (r"\boxed{14}", "14", 1),
    (r"\boxed{14\text{ cm}}", "14", 1),
    (r"\boxed{145^\circ}", "145°", 1),
    (r"\boxed{2\sqrt{221}}", r"2 \sqrt{221}", 1),
    (r"\boxed{\sqrt{884}}", r"2\sqrt{221}", 1),
    (r"\boxed{0.5}", r"\frac{1}{2}", 1),
    ("The answer is C", "C", 1),
    (r"\boxed{\text{Red}}", "red", 1),
    (r"\boxed{2\sqrt{220}}", r"2\sqrt{221}", 0),
    (r"\boxed{13}", "14", 0),
    ("", "14", None),
]
