"""A text to compare predictions on where the user gives none: prose, talk, lists, code, data, a little arithmetic."""

SAMPLE_TEXT = """\
The ferry left the harbour a little after six, when the fog had lifted from the breakwater but still lay in the
valley behind the town. Marta stood at the rail and counted the houses she knew. The baker had lit his window; the
school was dark; the yellow house on the corner, where her grandmother had lived until the winter of the great
storm, had new curtains. "You could have stayed," said the man beside her, who sold rope and lamp oil and had known
her since she was a child. She laughed. "And do what? Mend nets until I am as deaf as my uncle?" He thought about
it for as long as it took the ferry to pass the lighthouse. "There are worse things than nets," he said.

User: My kitchen scale shows a different weight each time I put the same bag of flour on it. What could be wrong?
Assistant: There are a few common causes. First, check that the scale stands on a hard and level surface; a towel or
an uneven board changes the reading. Second, replace the batteries: when the voltage drops, many scales drift. Third,
press the tare button with nothing on the plate and wait until it shows zero. If the reading still changes by more
than two or three grams, the sensor is probably worn out or has been overloaded, and a new scale costs less than a
repair.

How to plant garlic:
1. Choose a sunny bed with loose soil, and dig in some compost.
2. Break the bulb into cloves, but leave the skin on.
3. In October, set the cloves five centimetres deep and fifteen apart, with the pointed end up.
4. Cover the bed with straw, and water it only when the top of the soil is dry.
5. Harvest in July, when the lower leaves have turned brown.

def moving_average(values, size):
    \"\"\"Means of each run of `size` neighbours.\"\"\"
    if size < 1:
        raise ValueError("size must be at least 1")
    total = sum(values[:size])
    means = [total / size]
    for old, new in zip(values, values[size:]):
        total += new - old
        means.append(total / size)
    return means

{"city": "Lisbon", "country": "Portugal", "population": 545923, "rivers": ["Tagus"], "is_capital": true}
{"city": "Porto", "country": "Portugal", "population": 231800, "rivers": ["Douro"], "is_capital": false}

Water boils at 100 degrees Celsius at sea level because there its vapour pressure equals the pressure of the air. On a
mountain the air presses less, and so the water boils sooner: at 3,000 metres it takes only about 90 degrees. That is
why potatoes need longer up there, although the pot bubbles just as merrily. A pressure cooker does the opposite. Its
lid holds the steam back until the pressure has nearly doubled, the water reaches 120 degrees, and a stew that would
have taken three hours is done in one.

A train leaves at 14:10 and arrives at 16:55, so the journey takes 2 hours and 45 minutes, which is 165 minutes. If it
travels 220 kilometres, its average speed is 220 / 2.75 = 80 kilometres an hour. With a stop of 15 minutes on the way it
would have to travel at 88 kilometres an hour to arrive at the same time.

Dear Mr Okafor,
thank you for your letter of 3 March. We are sorry to hear that two of the twelve chairs arrived with scratches on
the back. We will send you two new ones within a week, free of charge; please hand the damaged chairs to the driver
when he comes. If you would rather keep them, we offer you a discount of thirty per cent on both.
With kind regards, the customer service of Birch & Sons

The history of the printing press is often told as the history of one man and one machine, but paper mattered as much
as type. For centuries books in Europe were written on parchment, and a single Bible took the skins of some two
hundred animals. Paper, made of rags, was cheap; it came from China by way of the Arab world, and by the year 1400
there were mills in Italy, France and Germany. Only when there was something cheap to print on did it make sense to
print quickly.
"""
